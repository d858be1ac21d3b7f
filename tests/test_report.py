"""Reports: what stands in tables, which of two runs is better, what a browser of samples shows."""

import dataclasses
import json
import math
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from programs import Program, launch
from test_benchmarks import ROOT, write_answers
from trol_jax import version
from trol_jax.errors import UserError
from trol_jax.evals import score
from trol_jax.evals.report import compare, figures, runs, samples, splits, tables, write

NAMES = ("pope", "chartqa", "mmbench", "mmbench_dev", "hallusionbench", "mmmu", "textvqa", "llava")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of recorded answers, and of worse ones."""
    folder = tmp_path_factory.mktemp("results")
    for name in NAMES:
        write_answers(folder / "answers", name)
        write_answers(folder / "worse", name)
    for file in (folder / "worse").iterdir():
        lines = [json.loads(line) | {"answer": "</script><b>no</b>"} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for answers, name, scoring in (
        ("answers", "good-7B", "trol"),
        ("worse", "bad", "trol"),
        ("worse", "std", "standard"),
    ):
        assert not [e for e in score.score(ROOT, NAMES, folder / answers, folder / name, scoring=scoring) if e is None]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return runs.read([str(folder / "good-7B"), str(folder / "bad"), f"other={folder / 'std'}"])


def row(table, name, scoring=None):
    (line,) = [line.cells for line in table.lines if line.cells[0] == name and scoring in (None, line.cells[-3])]
    return dict(zip(table.header, line, strict=True))


def made(name="run", how=None, **scores):
    """A run with results of those scores."""
    base = dict.fromkeys(("n", "answered", "unparsed", "failed", "missing", "bad_rows", "unjudged"), 0)
    base |= dict(
        scoring="trol",
        value=50.0,
        standard_error=1.0,
        unit="percent",
        scorer="rule",
        splits={},
        judge="none",
        settings={},
    )
    results = {own: runs.Result(benchmark=own, version="1", **(base | (how or {}))) for own in scores}
    rows = {
        own: {i: runs.Sample(i, i, "?", [], "", "", "yes", value) for i, value in enumerate(values)}
        for own, values in scores.items()
    }
    return runs.Run(name, None, results, rows)


# ---------------------------------------------------------------------- tables
def test_published_rows_agree_with_each_other():
    known = runs.published()
    assert "2406.12246" in known["note"] and len(known["tables"]) == 3
    for rows in known["tables"].values():
        assert {*rows} > {*known["trol"]}
        for model, values in known["trol"].items():
            assert rows[model] == {name: values[name] for name in rows[model]}
    assert all({*values} == {*runs.COLUMNS} for values in known["trol"].values())


def test_runs_stand_beside_published_rows(found):
    small, large, closed, everything = tables.all_tables(found)
    assert row(small, "TroL-7B")["MME"] == "2,308" and row(small, "MM1-7B")["LLaVA-W"] == tables.DASH
    good = row(small, "good-7B")
    assert good["POPE"] == "45.8 ± 9.9" and (good["Scoring"], good["Judge"], good["Version"]) == (
        "trol",
        "none",
        version.of(version.SCORING),
    )
    assert {good[name] for name in ("SQA-IMG", "MME", "MathVista", "LLaVA-W")} == {tables.DASH}  # llava has no judge
    assert good["MMB"] == "33.3 ± 19.2" and "MMB is mmbench_dev of good-7B, bad, other." in small.notes
    assert row(small, "other")["Scoring"] == "standard" and row(large, "good-7B")["ChartQA"] == "62.5 ± 17.1"
    assert len(closed.lines) == 6 + 3 and len(everything.lines) == 3 * len(NAMES)
    text = tables.markdown(small)
    assert "| **good-7B** |" in text and "| 87.8 |" in text and text.count("\n| ") == 11


def test_a_part_of_the_questions_is_marked_and_judges_are_named():
    part = made(pope=[1], mme=[1], how=dict(judge="m (host)", settings={"limit": 3}))
    part = dataclasses.replace(part, results=part.results | made(ai2d=[1]).results)
    table = tables.paper_table("Closed-source LLVMs", [part])
    assert row(table, "run")["MME"] == "50 ± 1*" and row(table, "run")["AI2D"] == "50.0 ± 1.0"
    assert row(table, "run")["Judge"] == "m (host): MME" and any(note.startswith("*") for note in table.notes)


def test_parts_that_are_absent_are_marked_and_named():
    part = made(visualwebbench=[1], how=dict(absent=["webqa"]))
    assert tables.value(part.results["visualwebbench"], "") == "50.0 ± 1.0*"
    assert "run lacks of visualwebbench: webqa." in tables.everything([part]).notes


def test_it_is_said_that_judges_are_asked_in_other_words_than_the_authors():
    for title in runs.published()["tables"]:
        assert "does not compare exactly" in " ".join(tables.paper_table(title, [made(pope=[1])]).notes)


def test_results_without_absent_are_read(tmp_path):
    (tmp_path / "pope.json").write_text(json.dumps(vars(made(pope=[1]).results["pope"])))
    text = (tmp_path / "pope.json").read_text().replace(', "absent": []', "")
    (tmp_path / "pope.json").write_text(text)
    assert "absent" not in text and runs.read_result(tmp_path / "pope.json").absent == []


def test_results_of_two_scorings_are_two_rows():
    mixed = made(pope=[1])
    mixed = dataclasses.replace(mixed, results=mixed.results | made(mme=[1], how=dict(scoring="standard")).results)
    table = tables.paper_table("Open-source LLVMs with Standard Model Size", [mixed])
    assert (row(table, "run", "trol")["MME"], row(table, "run", "standard")["POPE"]) == (tables.DASH, tables.DASH)
    assert (row(table, "run", "trol")["POPE"], row(table, "run", "standard")["MME"]) == ("50.0 ± 1.0", "50 ± 1")


@pytest.mark.parametrize(
    "name, billions",
    [("TroL-1.8B", 1.8), ("trol_1_8b", 1.8), ("trol_7b", 7), ("InternVL1.5-40B", 40), ("GPT-4V", None), ("8bit", None)],
)
def test_names_tell_sizes(name, billions):
    assert runs.size(name) == billions


def test_parts_of_benchmarks_stand_side_by_side(found):
    by_name = {table.title: table for table in splits.all_tables(found)}
    assert {*by_name} >= {"pope", "mmmu", "hallusionbench"} and "llava" not in by_name
    parts = {line.cells[0]: line.cells[1:] for line in by_name["pope"].lines}
    assert parts["popular / tp"][0] == "3" and parts["mean / f1"][:2] == (tables.DASH, tables.DASH)
    assert f"good-7B: scoring trol, judge none, version {version.of(version.SCORING)}." in by_name["pope"].notes
    parts = {line.cells[0]: line.cells[1:] for line in by_name["hallusionbench"].lines}
    assert parts["category / VD"][0] == "66.7 ± 19.2 (n 6)"


def test_what_is_missing_is_a_gap_of_the_radar():
    spans = {"POPE": (10.0, 20.0), "MME": (5.0, 5.0), "AI2D": (0.0, 1.0)}
    assert figures.placed({"POPE": 15.0, "MME": 5.0, "AI2D": None}, spans)[:2] == [0.5, 1.0]
    assert math.isnan(figures.placed({"AI2D": None}, spans)[2])


# ---------------------------------------------------------------------- comparison
def test_mcnemar_is_the_sign_test():
    assert compare.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert compare.mcnemar(3, 12) == compare.mcnemar(12, 3) == pytest.approx(2 * 576 / 2**15)
    assert compare.mcnemar(0, 0) == compare.mcnemar(4, 4) == 1
    assert 0.003 < compare.mcnemar(5000, 5300) < 0.0033


def test_holm():
    assert compare.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_the_better_run_is_named_in_both_orders():
    first, second = (
        made("first", pope=[0] * 20 + [1] * 30, textvqa=[0.3] * 40),
        made("second", pope=[1] * 50, textvqa=[0.6] * 39 + [0]),
    )
    pope, textvqa = compare.compare(first, second)
    assert (pope.n, pope.first, pope.second, pope.test) == (50, 60, 100, compare.MCNEMAR)
    assert pope.p == pytest.approx(2 / 2**20) and pope.adjusted == 2 * pope.p and pope.sign == 1
    assert pope.low < 40 < pope.high and textvqa.test == compare.BOOTSTRAP and textvqa.sign == 1
    assert [each.sign for each in compare.compare(second, first)] == [-1, -1]
    assert "too few" in compare.compare(made(textvqa=[0.3] * 9), made(textvqa=[0.6] * 9))[0].why
    table = compare.table(second, first)
    assert row(table, "pope", "trol")["Better"] == "second" and row(table, "pope")["Difference"] == "-40.0"


def test_the_bootstrap_has_the_spread_of_the_mean():
    differences = np.random.default_rng(1).normal(0.1, 1, 400)
    means = compare.resampled(differences)
    assert means.std() == pytest.approx(differences.std() / 20, rel=0.05)
    assert means.mean() == pytest.approx(differences.mean(), abs=0.005)
    assert compare.bootstrap(np.zeros(9)) == 1


def test_what_cannot_be_compared_says_why(found):
    good, bad, other = found
    assert compare.compare(good, good)[0].sign == 0
    assert {each.why for each in compare.compare(bad, other)} >= {"different scoring: trol and standard"}
    by_name = {each.benchmark: each for each in compare.compare(good, bad)}
    assert by_name["llava"].why == "no question has a score of both" and by_name["hallusionbench"].second < 100
    changed = made(pope=[1, 1, 1])
    changed.samples["pope"][0] = dataclasses.replace(changed.samples["pope"][0], prompt="another question")
    assert compare.compare(made(pope=[0, 0, None]), changed)[0].n == 1


# ---------------------------------------------------------------------- samples
def test_samples_have_pictures_of_files_and_of_tables(found, tmp_path):
    data = samples.collect(found, tmp_path)
    assert data["runs"] == ["good-7B", "bad", "other"] and {*data["benchmarks"]} == {*NAMES}
    by_name = {name: [s for s in data["samples"] if s[0] == i] for i, name in enumerate(data["benchmarks"])}
    assert all(each[4] and None not in each[4] for name in ("mmbench_dev", "mmmu") for each in by_name[name])
    assert data["pictures"][0].startswith("data:image/webp;base64,") and not list(tmp_path.iterdir())
    assert data["lost"] > 0  # the miniatures have few pictures
    first = by_name["pope"][0]
    assert first[3].startswith("Is there a green in the image?") and first[5] == "no"
    assert first[6] == [["Yes, there is.", "yes", 0.0], *[["</script><b>no</b>", None, 0.0]] * 2]
    assert "</script>" not in samples.script(data) and json.loads(samples.script(data)) == json.loads(json.dumps(data))


def test_pictures_are_found_as_they_are_spelled(found, tmp_path):
    shutil.copytree(ROOT / "HallusionBench", tmp_path / "root" / "HallusionBench")
    only = dataclasses.replace(found[0], samples={"hallusionbench": found[0].samples["hallusionbench"]})
    for sample in only.samples["hallusionbench"].values():
        for name in sample.images:
            file = (tmp_path / "root" / name).with_suffix(".PNG")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (0, sample.index * 20, 0)).save(file)
    data = samples.collect([only], tmp_path / "out", tmp_path / "root")
    counts = {len(each[4]) for each in data["samples"]}
    assert data["lost"] == 0 and counts == {0, 1}  # some are asked without a picture
    files = {name for each in only.samples["hallusionbench"].values() for name in each.images}
    assert len(data["pictures"]) == len(files)
    gone = samples.collect([only], tmp_path / "out", tmp_path / "nowhere")
    assert gone["lost"] == [each[4] for each in gone["samples"]].count([None]) > 0 and not gone["pictures"]


def test_each_run_has_the_pictures_of_its_own_root(tmp_path):
    """What two runs ask at the same place of other data has other pictures."""
    both = []
    for number, question in enumerate(("?", "which?")):
        root = tmp_path / str(number)
        root.mkdir()
        Image.new("RGB", (40, 30), (0, 90 * number, 0)).save(root / "a.png")
        run = made(f"run {number}", {"settings": {"root": str(root)}}, pope=[1.0])
        asked = dataclasses.replace(run.samples["pope"][0], prompt=question, images=["a.png"])
        both.append(dataclasses.replace(run, samples={"pope": {0: asked}}))
    data = samples.collect(both, tmp_path / "out")
    assert [each[4] for each in data["samples"]] == [[0], [1]] and data["lost"] == 0
    assert len(set(data["pictures"])) == 2
    asked = dataclasses.replace(both[0].samples["pope"][0], gold="another")
    other = dataclasses.replace(both[1], samples={"pope": {0: asked}})
    assert len(samples.collect([both[0], other], tmp_path / "out")["samples"]) == 2


def test_more_pictures_lie_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "EMBEDDED", 1)
    pictures = samples.Pictures(tmp_path)
    for number in range(3):
        Image.new("RGB", (900, 300), (number * 90, 0, 0)).save(tmp_path / f"{number}.png")
    places = [pictures.place(tmp_path / f"{number}.png") for number in (0, 1, 2, 1, 3)]
    assert places == [0, 1, 2, 1, None] and pictures.lost == 1
    assert pictures.addresses[1:] == ["pictures/1.webp", "pictures/2.webp"]
    with Image.open(tmp_path / "pictures" / "2.webp") as image:
        assert image.size == (320, 107)


# ---------------------------------------------------------------------- files
def test_all_files_are_written(folder, tmp_path):
    write.report([str(folder / "good-7B"), f"worse={folder / 'bad'}"], tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"report.html", "report.md", "radar.png", "size.png", "tables.png"}
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "worse against good-7B" in page and "worse against good-7B" in text and "<b>no</b>" not in page
    assert 'src="http' not in page and 'href="http' not in page
    assert (tmp_path / "tables.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "name at least one folder of results"),
        (["nowhere"], "nowhere is no folder"),
        (["tests"], "tests holds no results"),
        (["GOOD", "GOOD"], "two runs are named good-7B; name one of them"),
        (["=GOOD"], "names no run; write DIR, or NAME=DIR"),
        (["BROKEN"], 'pope.json, row 1: "value" is nan, must be a number'),
        (["LACKING"], 'pope.json, row 1: "absent" is [1], must be a list of names'),
    ],
)
def test_what_is_wrong_is_one_line(folder, tmp_path, arguments, said):
    broken = shutil.copytree(folder / "good-7B", tmp_path / "broken")
    text = (broken / "pope.json").read_text()
    (broken / "pope.json").write_text(text.replace('"value": 45', '"value": NaN, "was": 45', 1))
    lacking = shutil.copytree(folder / "good-7B", tmp_path / "lacking")
    (lacking / "pope.json").write_text(json.dumps(json.loads(text) | {"absent": [1]}))
    names = {"GOOD": str(folder / "good-7B"), "BROKEN": str(broken), "LACKING": str(lacking)}
    given = [names.get(text.lstrip("="), text) if text != "=GOOD" else f"={names['GOOD']}" for text in arguments]
    with pytest.raises(UserError) as error:
        write.report(given, tmp_path / "out")
    with pytest.raises(UserError, match=r"--root=.*nowhere is no folder"):
        write.report([names["GOOD"]], tmp_path / "out", tmp_path / "nowhere")
    assert said in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- page
CHROMIUM = shutil.which("chromium")
QUESTIONS = 10_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two runs of 10,000 samples, and their scores."""
    folder, draw = tmp_path_factory.mktemp("large"), random.Random(0)
    for number in range(20):
        Image.effect_mandelbrot((320, 240), (-2, -1, 1, 1), 4 + number).convert("RGB").save(folder / f"{number}.png")
    scores = {
        name: [float(draw.random() < share) for _ in range(QUESTIONS)]
        for name, share in (("first-7B", 0.8), ("second", 0.6))
    }
    for name, marks in scores.items():
        run = made(pope=[], seed=[], how=dict(settings={"root": str(folder)}))
        (folder / name).mkdir()
        for own, part in (("pope", slice(0, 4000)), ("seed", slice(4000, None))):
            (folder / name / f"{own}.json").write_text(json.dumps(dataclasses.asdict(run.results[own])))
            rows = [
                dict(index=i, id=i, prompt=f"<image>Is there <b>thing {i}</b>?", images=[f"{i % 20}.png"], answer="yes",
                     parsed="yes", gold="yes", score=value)
                for i, value in enumerate(marks[part])
            ]  # fmt: skip
            (folder / name / f"{own}.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Program(launch("report"), folder / "first-7B", folder / "second", f"--output={folder}/out").wait()[0] == 0
    return folder / "out" / "report.html", list(zip(*scores.values(), strict=True))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_browses_ten_thousand_samples_offline(large):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file, scores = large
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(file.as_uri())
        page.locator(".card").nth(24).wait_for()
        assert page.locator("table").count() == 5 and page.locator("figure img").count() == 2

        def shown(**values):
            """How many samples there are, and the milliseconds that took."""
            took = page.evaluate(SET, values)
            return int(page.locator("#count").inner_text().split(" of ")[0].replace(",", "")), took

        assert shown()[0] == QUESTIONS and page.locator(".card").count() == 25
        either = sum(0 in pair for pair in scores)
        cases = [
            ({"shows": "1"}, either),
            ({"shows": "2"}, sum(pair == (0, 0) for pair in scores)),
            ({"shows": "3"}, sum(len({*pair}) == 2 for pair in scores)),
            ({"shows": "5", "benchmark": "1"}, sum(pair[1] == 0 for pair in scores[:4000])),
            ({"text": "THING 77<"}, 2),
            ({"text": "nowhere"}, 0),
        ]
        for values, wanted in cases:
            found, took = shown(**values)
            assert found == wanted and took < 1000, (values, took)
        shown(shows="1")
        card = page.locator(".card").first
        assert card.locator("b").count() == 0 and "<b>thing" in card.inner_text()
        assert card.locator(".answer").count() == 2 and card.locator(".wrong").count() > 0
        card.scroll_into_view_if_needed()  # pictures are loaded when they are seen
        page.wait_for_function("document.querySelector('.card img').naturalWidth === 320")
        before = card.inner_text()
        page.get_by_role("button", name="Next").click()
        assert "page 2 of" in page.locator("#count").inner_text() and card.inner_text() != before
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert not errors and not [url for url in requests if not url.startswith(("file:", "data:"))]
        browser.close()


SET = """values => {
  const began = performance.now();
  for (const id of ["benchmark", "shows", "text"]) {
    const field = document.getElementById(id);
    field.value = values[id] ?? (id === "text" ? "" : "0");
    field.dispatchEvent(new Event("input"));
  }
  return performance.now() - began;
}"""
