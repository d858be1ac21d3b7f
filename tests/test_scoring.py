"""The benchmarks' own definitions, on cases small enough to compute by hand."""

import random
import statistics

import pytest

from trol_jax.evals.benchmarks import BENCHMARKS, mathverse, mm_vet, mmmu
from trol_jax.evals.files import BadRow, Row
from trol_jax.evals.items import Item, Sample
from trol_jax.evals.scoring import mean, over


def summary(name, rows, scoring="standard"):
    """rows: (gold, answer, fields) of questions numbered from 0, or with "id" among the fields."""
    rules = BENCHMARKS[name].scorings[scoring]
    items = [
        Item(fields.get("id", place), fields.get("question", ""), (), gold, fields, place)
        for place, (gold, _, fields) in enumerate(rows)
    ]
    samples = []
    for item in rules.select(items):
        answer = rows[item.index][1]
        parsed = rules.parse(item, answer)
        samples.append(Sample(item, answer, parsed, rules.mark(item, parsed)))
    return rules.summarise(samples)


def test_means_and_their_errors():
    assert mean([1, 0, 0, 1]) == (50, pytest.approx(100 * (0.25 / 4) ** 0.5))
    value, error = over([[1, 1, 0, 0], [1]])
    assert (value, error) == (75, pytest.approx(12.5))
    assert mean([]) == over([]) == (None, None)


def test_pope_counts_by_split():
    rows = [("yes", "Yes", {"category": "random"}), ("no", "Yes, it is", {"category": "random"})]
    rows += [("yes", "No.", {"category": "random"}), ("no", "no", {"category": "random"})]
    rows += [("yes", "yes", {"category": "popular"}), ("no", "there is not", {"category": "popular"})]
    result = summary("pope", rows)
    wanted = {
        "accuracy": 50,
        "precision": 50,
        "recall": 50,
        "f1": 50,
        "yes_share": 50,
        "tp": 1,
        "fp": 1,
        "tn": 1,
        "fn": 1,
    }
    assert result.splits["random"] == wanted
    assert result.splits["popular"]["f1"] == 100 and result.value == result.splits["mean"]["f1"] == 75
    assert summary("pope", rows, "trol").value == 75  # the accuracies


def test_the_error_of_pope_is_that_of_f1():
    rng = random.Random(0)
    rows = [
        (gold, gold if rng.random() < right else "no", {"category": split, "id": place})
        for split, right in (("popular", 0.9), ("random", 0.4))
        for place, gold in enumerate(["yes", "no"] * 300)
    ]
    error = summary("pope", rows).error
    values = []
    for _ in range(200):  # a bootstrap within the splits
        drawn = [row for part in (rows[:600], rows[600:]) for row in rng.choices(part, k=600)]
        values.append(summary("pope", [(*row[:2], row[2] | {"id": i}) for i, row in enumerate(drawn)]).value)
    assert error == pytest.approx(statistics.stdev(values), rel=0.15)
    assert summary("pope", [("no", "no", {"category": "random"})] * 3).error == 0


def test_mme_pairs_the_questions_of_a_picture():
    def row(picture, gold, answer, number, category="count"):
        return gold, answer, {"id": picture, "question_id": picture, "category": category, "question": str(number)}

    apart = [row("a", "yes", "Yes", 1), row("b", "yes", "no", 2), row("a", "no", "No", 3), row("b", "no", "no", 4)]
    result = summary("mme", [*apart, row("c", "yes", "other", 5, "OCR")])
    assert result.splits["Perception"] == {"count": 75 + 50, "total": 125}  # of OCR no picture has two questions
    assert result.splits["Cognition"] == {"total": 0} and result.value == 125
    assert (
        summary("mme", apart, "trol").splits["Perception"]["count"] == 75 + 50 - 50 + 50
    )  # (a b) and (a b): one right
    # Each picture's points are 200 and 50: their mean is 125 and its error 75 / sqrt(2).
    assert result.error == pytest.approx(75 / 2**0.5)


def test_mmbench_wants_every_rotation():
    def row(index, gold, answer, **more):
        return gold, answer, {"id": index, "index": index, "choices": ["p", "q"], **more}

    rows = [row(1, "A", "A", category="x"), row(1000001, "B", "B", category="x")]
    rows += [row(2, "A", "A. p", category="x"), row(1000002, "B", "A", category="x"), row(3, "B", "q")]
    result = summary("mmbench_dev", rows)
    assert result.value == pytest.approx(200 / 3) and result.n == 3
    assert result.splits["category"]["x"] == {
        "value": 50,
        "n": 2,
        "standard_error": pytest.approx(100 * (0.25 / 2) ** 0.5),
    }
    assert result.splits["every_row"]["value"] == 80
    assert summary("mmbench_dev", rows, "trol").value == 60  # "q" is not understood, and rotations count
    assert summary("mmbench", [row(1, None, "A")]).value is None


def test_hallusionbench_has_three_accuracies():
    def row(gold, answer, figure, question, category="VD"):
        fields = dict(category=category, subcategory="map", set_id="0", figure_id=figure, question_id=question)
        return gold, answer, fields

    rows = [row("1", "Yes", "0", "0"), row("0", "no", "0", "1"), row("1", "no", "1", "0"), row("0", "No.", "1", "1")]
    rows += [row("1", "eyes", "0", "0", "VS")]
    result = summary("hallusionbench", rows)
    assert result.value == result.splits["aAcc"]["value"] == 60
    assert result.splits["qAcc"]["value"] == pytest.approx(100 / 3)  # of question 0, 1, and that of VS
    assert result.splits["fAcc"]["value"] == 50  # figures 0 and 1; VS without a figure is none
    assert summary("hallusionbench", rows, "trol").value == 80  # "eyes" has "yes" in it


def test_chartqa_is_the_mean_of_people_and_machine():
    human, machine = {"split": "human", "id": "a"}, {"split": "augmented", "id": "a"}
    rows = [(["100"], "104", machine), (["100"], "106", machine), (["12%"], "12", machine), (["12%"], "0.12", machine)]
    rows += [(["Norway"], "norway", human), (["3"], "x", human), (["7"], "8", human), (["7"], "", human)]
    result = summary("chartqa", rows)
    assert result.value == (50 + 25) / 2
    assert result.splits["split"]["human"]["value"] == 25
    assert summary("chartqa", rows, "trol").value == 100  # only the first of a picture, and no question of people's


def test_gqa_without_the_period_and_only_balanced():
    types = dict(balanced=True, answer_type="open", structural="query", semantic="rel")
    rows = [
        ("dog", "Dog.", types),
        ("yes", "no", types | {"answer_type": "binary"}),
        ("x", "x", types | {"balanced": False}),
    ]
    result = summary("gqa", rows)
    assert result.value == 50 and result.splits["answer_type"]["open"]["value"] == 100
    assert summary("gqa", rows, "trol").value == 0


@pytest.mark.parametrize("name", ["sqa", "ai2d", "seed", "qbench", "qbench_cn"])
def test_choices_by_letter_or_text(name):
    fields = {"choices": ["robin", "pelican"], "type": "bird"}
    rows = [("B", "(B)", fields), ("B", "pelican", fields), ("B", "A", fields), ("B", "", fields)]
    result = summary(name, rows)
    assert result.value == 50
    if name in ("seed", "qbench"):
        assert result.splits["type"]["bird"]["n"] == 4


def test_qbench_takes_the_last_choice_for_what_it_does_not_understand():
    rows = [
        ("B", "eh", {"choices": ["p", "q"]}),
        ("A", "eh", {"choices": ["p", "q"]}),
        ("A", "A", {"choices": ["p", "q"]}),
    ]
    assert summary("qbench", rows, "trol").value == pytest.approx(200 / 3)


def test_mmstar_by_what_was_asked():
    fields = {"category": "math", "l2_category": "geometry"}
    rows = [("B", "(b)", fields), ("B", "option C", fields)]
    result = summary("mmstar", rows)
    assert result.value == 50 and result.splits["category"]["math"]["value"] == 50
    trol = summary("mmstar", rows, "trol")
    assert trol.value == pytest.approx(100 / 1500) and trol.splits["math(geometry)"] == 0.5


def test_mathverse_by_version_and_without_text_only():
    def row(gold, answer, version, kind="free-form"):
        return gold, answer, {"problem_version": version, "question_type": kind, "question": "Choices:\nA:2\nB:3"}

    rows = [row("12", "x = 12.", "Text Lite"), row("B", "3", "Vision Only", "multi-choice")]
    rows += [row("A", "B", "Vision Only", "multi-choice"), row("5", "5", "Text Only")]
    result = summary("mathverse", rows)
    assert result.value == pytest.approx(200 / 3) and result.n == 3
    values = {name: part["value"] for name, part in result.splits["problem_version"].items()}
    assert values == {"Text Lite": 100, "Vision Only": 50, "Text Only": 100}
    assert summary("mathverse", rows, "trol").value is None


def test_choices_of_mathverse_may_have_no_text():
    assert mathverse.options("Find x.\nChoices:\nA:\nB: \nC:\tp q\nD:5") == {"A": "", "B": "", "C": "p q", "D": "5"}


def test_capabilities_of_mm_vet_are_together_in_any_order():
    items = [Item(0, "", fields={"capability": names}) for names in (["ocr", "math"], ["math", "ocr"], ["ocr"])]
    splits = mm_vet.summarise([Sample(item, "", 1.0, 1.0) for item in items]).splits
    assert {name: found["n"] for name, found in splits["capabilities"].items()} == {"math, ocr": 2, "ocr": 1}


@pytest.mark.parametrize("text", ["[{[]: 1}]", "[" + "-" * 3000 + "1]", "[" * 9000, "[1", "[f()]", "[\0]"])
def test_what_is_no_list_of_python_is_a_text_of_mmmu(text):
    assert mmmu.listed(text) is None and mmmu.golds(Item(0, "", gold=text)) == text
    with pytest.raises(BadRow, match=r'row 3: "options" is .*, must be a list'):
        mmmu.literal(Row({}, "file.parquet", 3), text)


def test_mathvista_in_normal_form():
    def row(gold, answer, kind, choices=(), precision=0):
        fields = dict(answer_type=kind, choices=list(choices), precision=precision)
        return gold, answer, fields | {"question_type": "multi_choice" if choices else "free_form"}

    rows = [row("no", "(B) no", "text", ["yes", "no"]), row("3", "The answer is 3.0", "integer")]
    rows += [row("1.5", "1.46", "float", precision=1), row("[1, 2]", "[1, 2]", "list"), row("4", "3 or 4", "integer")]
    assert summary("mathvista", rows).value == 80


def test_mmmu_draws_where_it_finds_nothing_always_the_same():
    fields = {"type": "multiple-choice", "choices": ["p", "q"], "subject": "Art", "domain": "Art and Design"}
    rows = [("A", "the first, I think", fields | {"id": f"validation_Art_{number}"}) for number in range(200)]
    first = summary("mmmu", rows)
    assert 35 < first.value < 65 and summary("mmmu", rows[::-1]).value == first.value
    opened = fields | {"type": "open", "choices": []}
    assert summary("mmmu", [("['1/2', '0.5']", "so it is 0.5", opened), ("B", "(A) or (B)", fields)]).value == 100
    assert summary("mmmu", [("B", "(B)", fields)], "trol").splits["Overall"] == {"num": 1, "acc": 0}


def test_visualwebbench_reads_the_forms_of_answers():
    rows = [("a shop", '<meta name="description" content="a shop">', {"task": "web_caption"})]
    rows += [("free tea", "The text content within the red bounding box is: free tea", {"task": "element_ocr"})]
    rows += [(["$12", "12 dollars"], "12 dollars", {"task": "webqa"}), ("C", "(C)", {"task": "action_ground"})]
    result = summary("visualwebbench", rows)
    assert result.value == pytest.approx(100, abs=1e-5)
    assert result.splits["web_caption"]["rouge_2"] == pytest.approx(100, abs=1e-5)
    assert summary("visualwebbench", rows, "trol").value < 80


def test_vqa_by_type_of_answer():
    golds = ["cat"] * 2 + ["dog"] * 8
    rows = [(golds, "Cat.", {"answer_type": "other", "in_place": golds}), (golds, "dog", {"in_place": None})]
    result = summary("vizwiz", rows)
    cat = (2 * 1 / 3 + 8 * 2 / 3) / 10
    assert result.value == pytest.approx(100 * (cat + 1) / 2)
    assert result.splits["answer_type"]["other"]["value"] == pytest.approx(100 * cat)
    assert summary("textvqa", rows, "trol").value == pytest.approx(100 * cat)  # the second has nothing in its place
    assert summary("vqav2", [(None, "cat", {})]).value is None
