"""The whole recipe in a few steps, by the programs that a person would start."""

import itertools
import json
import os
import re
import shutil
import subprocess

import pytest

import programs
from programs import Program


@pytest.mark.slow
def test_both_steps_export_and_the_same_answers(tmp_path):
    """The commands of `make recipe`, with the smallest model."""
    runs, done = tmp_path / "runs", []
    commands = re.findall(r"\t(?:test -d \S+ \|\| )?\$\(RUN\) -m (launch\.\w+ .*)", recipe_of_the_makefile())
    assert len(commands) == 9  # and those of a loop
    for command in commands:
        name, *flags = command.removeprefix("launch.").split()
        flags = [flag.replace("=runs/", f"={runs}/").replace(".py:", ".py:smoke,") for flag in flags]
        flags = [re.sub(r"\.py:smoke,(\w+)", r".py:\1,smoke", flag) for flag in flags]
        if name == "bench":
            for stage in ("base", "step1_whole", "step2_whole", "again"):
                done.append(program("evaluate", f"--checkpoint={runs}/recipe/{stage}", "--limit=40", "--system="))
            done.append(program("bench", *flags))
            continue
        if name == "train":
            before = {"tower": "", "base": "tower", "step1": "recipe/base", "step2": "recipe/step1_whole"}
            start = before[flags[1].rpartition("/")[2]]
            flags += ["--config.model.variant=nano_phi3", "--config.scan=True", "--config.batch_size=2"]
            flags += ["--config.start_from=" + (str(runs / start) if start else ""), "--config.data.max_length=200"]
        done.append(program(name, *flags))
    assert "40 of 40 answers are the same before and after export" in done[-1]
    table = (runs / "recipe/recipe.md").read_text()
    assert table.count("\n") == 6 and all(len(line.split("|")) == 7 for line in table.splitlines())
    lines = [json.loads(line) for line in (runs / "recipe/step2/metrics.jsonl").read_text().splitlines()]
    assert {"grad_norm/adapters", "grad_norm/gate", "grad_norm/projector"} <= lines[-1].keys()


@pytest.mark.parametrize(
    ("anew", "made"), [("again", "again"), ("step1", "step1_whole step2 step2_whole released again")]
)
def test_what_came_of_another_step_goes(tmp_path, anew, made):
    """The rule `after` of `make recipe`, by the shell: what comes after a stage that is made anew is made anew too."""
    rule = re.search(r"^after = @(.*)$", (programs.ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    calls = re.findall(r"\$\(call after,(\S+),(\S+),(\S+)\)", recipe_of_the_makefile())
    clock = itertools.count(1000)

    def make(place):
        (folder := tmp_path / "runs/recipe" / place).mkdir(parents=True, exist_ok=True)
        os.utime(folder, (time := next(clock), time))

    for place in ("base/checkpoints", *(place for place, _, _ in calls), *["step1/checkpoints"] * (anew == "step1")):
        make(place)
    if anew == "again":
        shutil.rmtree(tmp_path / "runs/recipe/again")
    found = []
    for place, before, stage in calls:
        command = rule.replace("$(1)", place).replace("$(2)", before).replace("$(3)", stage)
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
        if not (tmp_path / "runs/recipe" / place).exists():
            found.append(stage)
            make(place)
    assert found == made.split()


def recipe_of_the_makefile() -> str:
    makefile = (programs.ROOT / "Makefile").read_text()
    return makefile[makefile.index("\nrecipe:") : makefile.index("\nsmoke:")]


def program(name, *flags) -> str:
    status, out, err = Program(programs.launch(name), *flags).wait()
    assert status == 0, (name, flags, err)
    return out
