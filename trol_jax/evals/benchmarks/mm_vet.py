"""MM-Vet: free answers, which a judge scores."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Judged, Summary, Unreadable
from trol_jax.evals.scoring import grouped, marked, mean, part, unscored

FILE = "mm-vet/mm-vet.json"


def read(root: Root):
    def item(row):
        images = (root.picture(row, "mm-vet/images", row.text("imagename")),)
        fields = {"capability": row.texts("capability")}
        return Item(str(row.number), row.text("question"), images, row.text("answer"), fields)

    return each(root.entries(FILE), item)


# The authors' table with examples of our own; "<AND>" joins what must all be said, "<OR>" what is right each.
TABLE = """Compare the prediction with the ground truth and grade it from 0.0 (all wrong) to 1.0 (all right), by 0.1.
<AND> in the ground truth: all of the parts must be said, each counts alike. <OR>: any one of the parts is enough.
Go on with the table: write the missing number, and nothing else.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which fruits are on the plate? | apple <AND> pear | There are two bananas. | 0.0
Which fruits are on the plate? | apple <AND> pear | I see an apple. | 0.5
Which fruits are on the plate? | apple <AND> pear | A pear and an apple. | 1.0
What is the result? | 14 <OR> fourteen | It is 41. | 0.0
What is the result? | 14 <OR> fourteen | fourteen | 1.0
Why is the sign funny? | The arrow points at the wall that it hangs on. | The arrow on the sign points at a wall. | 0.7
"""


def talk(item: Item, answer: str):
    gold = item.gold.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    reply = yield f"{TABLE}{' | '.join((item.question, gold, answer))} | "
    try:
        score = float((reply.split() or [""])[0])
    except ValueError:
        raise Unreadable from None
    if not 0 <= score <= 1:
        raise Unreadable
    return score, score


def summarise(samples) -> Summary:
    """By capability, and by those that a question takes together."""
    names = dict.fromkeys(name for sample in samples for name in sample.item.fields["capability"])
    single = {
        name: part(marked(sample for sample in samples if name in sample.item.fields["capability"])) for name in names
    }
    groups = grouped(samples, lambda sample: ", ".join(sorted(sample.item.fields["capability"])))
    together = {name: part(marked(group)) for name, group in groups.items()}
    return Summary(*mean(marked(samples)), {"capability": single, "capabilities": together})


RULE = "a judge grades from 0 to 1; mean"
JUDGED = unscored("scored by a judge only", Judged(RULE, talk, summarise))
BENCHMARK = Benchmark("mm-vet", read, {"trol": JUDGED, "standard": JUDGED})
