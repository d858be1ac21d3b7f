"""What is added to the questions of the benchmarks equals the original's, prompt by prompt."""

import json
import pathlib

import pytest

from trol_jax.data.prompts import FORMATS, render_prompt
from trol_jax.evals.instructions import INSTRUCTIONS, instruct

RECORDED = json.loads(
    (pathlib.Path(__file__).parent / "data" / "golden" / "preprocess" / "preprocess.json").read_text()
)

ORIGINAL = INSTRUCTIONS.keys() - {"easy_vqa"}  # which the original does not know


@pytest.mark.parametrize("family", FORMATS)
def test_every_prompt_equals_the_original(family):
    assert RECORDED["prompts"][family].keys() == ORIGINAL
    for benchmark, pairs in RECORDED["prompts"][family].items():
        for question, prompt in pairs:
            assert render_prompt(FORMATS[family], instruct(benchmark, question), image_tokens=0) == prompt, benchmark


def test_every_token_budget_equals_the_original():
    assert {name: INSTRUCTIONS[name].max_new_tokens for name in ORIGINAL} == RECORDED["max_new_tokens"]


def test_an_instruction_that_stands_already_is_not_repeated():
    question = "Is it red?\nPlease answer yes or no."
    assert instruct("hallusionbench", question) == question
