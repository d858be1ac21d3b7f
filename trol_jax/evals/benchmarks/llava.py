"""LLaVA-Bench in the Wild: free answers, which a judge compares with GPT-4's."""

from trol_jax.errors import UserError
from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Judged, Summary, Unreadable
from trol_jax.evals.scoring import grouped, of_sums, unscored

FOLDER = "llava-bench-in-the-wild"
CONTEXT, REFERENCES = f"{FOLDER}/context.jsonl", f"{FOLDER}/answers_gpt4.jsonl"  # only a judge needs them


def read(root: Root):
    contexts, references = keyed(root, CONTEXT, "image"), keyed(root, REFERENCES, "question_id")

    def item(row):
        images = (root.picture(row, FOLDER, "images", row.text("image")),)
        number, fields = row.get("question_id", int), {"category": row.text("category")}
        if contexts is not None:
            fields["context"] = caption(found(contexts, row, row.text("image"), CONTEXT))
        if references is not None:
            fields["reference"] = found(references, row, number, REFERENCES).text("text")
        return Item(number, row.text("text"), images, None, fields)

    return each(root.objects(f"{FOLDER}/questions.jsonl"), item)


def keyed(root: Root, file: str, key: str):
    """Rows by that field; None where there is no such file."""
    if not (root.path / file).exists():
        return None
    return {str(row.data.get(key)): row for row in root.objects(file) if isinstance(row.data, dict)}


def found(rows, row, key, file: str):
    if str(key) not in rows:
        raise row.bad(f"{file} has nothing for {key}")
    return rows[str(key)]


def caption(row) -> str:
    """One text, or several."""
    return row.text("caption") if isinstance(row.data.get("caption"), str) else "\n".join(row.texts("caption"))


# ---------------------------------------------------------------------- judge
PROMPT = """[Context]
{context}

[Question]
{question}

[Assistant 1]
{reference}

[End of Assistant 1]

[Assistant 2]
{answer}

[End of Assistant 2]

[System]
Two assistants answered a question about a picture. You cannot see it; the context describes it. Grade how helpful,
relevant, accurate and detailed each answer is, from 1 to 10, more being better. Do not let their order or length
lead you. Write on the first line the two grades, of Assistant 1 and of Assistant 2, with a space between, and nothing
else. Give your reasons from the next line on."""


def talk(item: Item, answer: str):
    if not {"context", "reference"} <= {*item.fields}:
        raise UserError(f"a judge needs {CONTEXT} and {REFERENCES}, which do not exist")
    reply = yield PROMPT.format(question=item.question, answer=answer, **item.fields)
    try:
        theirs, mine = map(float, reply.strip().split("\n")[0].replace(",", " ").split())
    except ValueError:
        raise Unreadable from None
    if not (1 <= theirs <= 10 and 0 <= mine <= 10):
        raise Unreadable
    return [theirs, mine], mine / 10


def ratio(samples) -> tuple[float | None, float | None]:
    """Of our grades by the reference's."""
    return of_sums([sample.parsed[::-1] for sample in samples if sample.score is not None])


def summarise(samples) -> Summary:
    groups = grouped([sample for sample in samples if sample.score is not None], "category")
    splits = {name: dict(zip(("value", "standard_error"), ratio(group), strict=True)) for name, group in groups.items()}
    return Summary(*ratio(samples), {"category": splits})


RULE = "a judge grades it and GPT-4's answer; the ratio of the means"
JUDGED = unscored("scored by a judge only", Judged(RULE, talk, summarise))
BENCHMARK = Benchmark("llava", read, {"trol": JUDGED, "standard": JUDGED})
