"""Studies: what is trained once, what is compared with what, and that a stopped study goes on."""

import dataclasses
import json
import math

import pytest

import fixtures
import programs
from programs import Program
from test_train import error_line
from trol_jax.data.shapes import write_shapes
from trol_jax.errors import STOPPED, UserError
from trol_jax.models.variants import get_variant
from trol_jax.ops.traversal import Traversal
from trol_jax.study import grid, report
from trol_jax.study.grid import Result
from trol_jax.study.statistics import difference, mean


def test_means_errors_and_paired_tests():
    assert (mean([1.0, 2.0, 6.0]).mean, mean([1.0, 2.0, 6.0]).error) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert math.isnan(mean([1.0]).error)
    found = difference([5.1, 4.9, 5.6, 5.8, 6.0], [4.9, 5.0, 5.2, 5.1, 5.5])
    assert found.mean == pytest.approx(0.34) and found.error == pytest.approx(0.1364, abs=1e-4)
    assert found.p == pytest.approx(0.0673, abs=2e-4)  # as scipy.stats.ttest_rel
    assert math.isnan(difference([1.0], [2.0]).p)
    assert (difference([1.0, 1.0], [1.0, 1.0]).p, difference([2.0, 2.0], [1.0, 1.0]).p) == (1, 0)


def rows(**changes) -> dict:
    plain = fixtures.run_config()

    def row(**options):
        return dataclasses.replace(plain, model=dataclasses.replace(plain.model, **options))

    return {"two": row(), "one": row(passes=1), "without": row(traversal=Traversal(answer_passes=1))} | changes


def test_rows_that_only_answer_differently_are_trained_once():
    study = rows()
    assert grid.runs_of(study) == {"two": "two", "one": "one", "without": "two"}
    assert [grid.how(config) for config in study.values()] == [None, None, "answer_passes=1"]
    assert grid.as_trained(study["without"]) == study["two"]


def test_flops_are_those_of_the_passes_that_are_made():
    three = lambda **options: grid.flops(dataclasses.replace(get_variant("tiny_phi3"), **options), 68)  # noqa: E731
    one, two = three(passes=1), three(passes=2)
    third = three(traversal=Traversal(layers="first 1"))
    assert third - one == pytest.approx((two - one) / 3, rel=0.01)
    for name, near in (("6_layers", 0.001), ("wider", 0.05)):
        model = dataclasses.replace(get_variant(f"tiny_phi3_{name}"), passes=1)
        assert grid.flops(model, 68) == pytest.approx(two, rel=near)


def test_the_commonest_answer_is_found_by_kind(tmp_path):
    fixtures.save_data(tmp_path, pictures=2)
    assert grid.guessed(tmp_path) == {"yes/no": 0.5, "color": 1, "shape": 1}


def test_the_report_tells_what_was_found(tmp_path):
    def result(row, seed, accuracy):
        curve = [(10, 2.0 + seed), (20, 1.0)]
        kinds, gates = {"count": accuracy, "chain": 0.5}, {"image": [0.5, 0.25 + seed / 2], "text": None}
        return Result(row, seed, accuracy, kinds, 10, gates, 1000, 2_000_000, 0.125, 3 * 2**20, curve)

    results = [result("one", 0, 0.5), result("<two>", 0, 0.75), result("one", 1, 0.6), result("<two>", 1, 0.7)]
    report.write_report(tmp_path, "Study of tests", "python -m launch.study", results, {"count": 0.3, "chain": 0.2})
    text = (tmp_path / report.MARKDOWN).read_text()
    assert "| one | 2 | 55.00 ± 5.00 |  |  |  |" in text
    assert "| <two> | 2 | 72.50 ± 2.50 | one | +17.50 ± 7.50 | 0.258 |" in text
    assert "| (the commonest answer) | 30.00 | 20.00 |" in text and "| one | 0.50, 0.50 |  |" in text
    assert "| one | 1,000 | 2 M | 0.125 | 3 MiB |" in text and "| row | count | chain |" in text
    assert (
        "| difference (p) | count | chain |" in text
        and "| <two> - one | +17.50 ± 7.50 (0.258) | +0.00 ± 0.00 (1.000) |" in text
    )
    page = (tmp_path / report.HTML).read_text()
    assert "&lt;two&gt;" in page and page.count("data:image/png;base64,") == 2
    assert len((tmp_path / report.RESULTS).read_text().splitlines()) == 4
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in report.PLOTS)
    turned = {"one": "<two>", "three": "one"}  # of rows that are not there nothing is said
    report.write_report(tmp_path, "", "", results, {"count": 0.3, "chain": 0.2}, turned)
    text = (tmp_path / report.MARKDOWN).read_text()
    assert "| one | 2 | 55.00 ± 5.00 | <two> | -17.50 ± 7.50 | 0.258 |" in text and "three" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--study=pases"], "study 'pases' is not known; choose one of depth, gates, layers, mixing, passes"),
        pytest.param(
            ["--study=table8", "--rows=two,five"],
            "row 'five' is not known; choose from one, two",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_unknown_studies_and_rows_are_named(flags, message):
    assert message in error_line(Program(programs.launch("study"), *flags).wait())


def test_a_study_that_is_stopped_measures_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(grid.loop, "train", lambda config, run: False)
    monkeypatch.setattr(grid.runner, "evaluate", None)
    with fixtures.nano_variants(), pytest.raises(SystemExit) as stopped:
        next(grid.measure(rows(), fixtures.save_run(tmp_path / "tower"), tmp_path / "study", seeds=1))
    assert stopped.value.code == STOPPED


@pytest.mark.slow
def test_a_study_trains_measures_and_goes_on(tmp_path, capsys):
    with fixtures.nano_variants():
        data = tmp_path / "data"
        write_shapes(data, pictures={"train": 4, "test": 2})
        study = {
            name: dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(data), max_length=150))
            for name, config in rows().items()
            if name != "one"
        }
        tower = fixtures.save_run(tmp_path / "tower")
        first = grid.measure(study, tower, tmp_path / "study", seeds=1, limit=5)
        results = [next(first)]
        first.close()
        results = list(grid.measure(study, tower, tmp_path / "study", seeds=1, limit=5))
        assert "already trained to step 1" in capsys.readouterr().out
        assert [(each.row, each.seed, each.questions) for each in results] == [("two", 0, 5), ("without", 0, 5)]
        assert all(each.curve[0][0] == 1 and each.seconds > 0 and each.memory > 4 * each.parameters for each in results)
        said = json.loads((tmp_path / "study/answers/without-0/answers.jsonl").read_text().splitlines()[0])
        assert "traversal answer_passes=1" in said["source"] and said["gate_text"] is None
        other = fixtures.save_run(tmp_path / "other", "internlm2")
        with pytest.raises(UserError, match="is a tower of internlm2, row two is of phi3; choose rows of one family"):
            next(grid.measure(study, other, tmp_path / "study", seeds=1))


def test_nothing_is_grafted_from_a_damaged_tower(tmp_path):
    with fixtures.nano_variants():
        tower = fixtures.save_run(tmp_path / "tower", objective="words")
        fixtures.flip_bytes(tower / "checkpoints" / "1")
        with pytest.raises(UserError, match=r"checkpoint .*tower/checkpoints/1 is damaged: state/"):
            grid.graft(tower, fixtures.run_config().model, 0, tmp_path / "start")
    assert not (tmp_path / "start").exists()
