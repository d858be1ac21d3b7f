"""Prompts: the original's strings, and what turns see and learn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from trol_jax.data.prompts import FORMATS, SYSTEM, encode_chat, encode_prompt, parse_answer, render_prompt
from trol_jax.data.tokenizer import train_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "data" / "prompts.json").read_text())
TURNS = [("is there a circle?", "no"), ("what color is it? 🙂", "dark  red"), ("a <image> </s> b", "yes"), ("", "no")]
CASES = [(name, image_tokens, system) for name in FORMATS for image_tokens in (0, 1, 5) for system in ("", SYSTEM)]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: train_tokenizer([question for question, _ in TURNS[:2]], f) for name, f in FORMATS.items()}


def picture_of(name: str, image_tokens: int) -> str:
    return {"internlm2": "<image>" * image_tokens, "phi3": f"<img>{'<IMG_CONTEXT>' * image_tokens}</img>"}[name]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("image_tokens", [1, 3])
def test_prompts_are_those_of_the_original(name, image_tokens):
    assert {case["picture"] for case in GOLDEN[name]} == {True, False}
    for case in GOLDEN[name]:
        expected = case["prompt"].replace("<image>", picture_of(name, image_tokens))
        count = image_tokens if case["picture"] else 0
        assert render_prompt(FORMATS[name], case["question"], count) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_answers_are_cut_out_of_decoded_text(name, tokenizers):
    format, tokenizer = FORMATS[name], tokenizers[name]
    prompt = render_prompt(format, "assistant?", 1)
    assert parse_answer(format, f"{prompt} dark red\n{format.end}\n</s>") == "dark red"
    assert parse_answer(format, f"{prompt}yes") == "yes"
    assert parse_answer(format, "yes") == "yes"
    assert parse_answer(format, f"{prompt}") == ""
    assert parse_answer(format, tokenizer.decode([*tokenizer.encode("dark red"), tokenizer.end_id])) == "dark red"


def spelled(text):
    """Text as it comes back from tokens: Phi-3's marks swallow the line break behind them."""
    return re.sub(r"(<\|\w+\|>)\n", r"\1", text)


@pytest.mark.parametrize(("name", "image_tokens", "system"), CASES)
def test_prompt_tokens_spell_the_prompt(name, image_tokens, system, tokenizers):
    format, tokenizer = FORMATS[name], tokenizers[name]
    for question, _ in TURNS:
        tokens = encode_prompt(tokenizer, format, question, image_tokens, system)
        assert tokenizer.decode(tokens, specials=True) == spelled(render_prompt(format, question, image_tokens, system))
        assert tokens.count(tokenizer.image_id) == image_tokens  # whatever the question spells


@pytest.mark.parametrize(("name", "image_tokens", "system"), CASES)
@pytest.mark.parametrize("isolate_turns", [True, False])
def test_prompts_are_what_training_rows_begin_with(name, image_tokens, system, isolate_turns, tokenizers):
    format, tokenizer = FORMATS[name], tokenizers[name]
    for count in range(1, len(TURNS) + 1):
        turns = TURNS[count - 1 : count] if isolate_turns else TURNS[:count]
        row = encode_chat(tokenizer, format, turns, image_tokens, system, isolate_turns)
        *history, (question, answer) = turns
        prompt = encode_prompt(tokenizer, format, question, image_tokens, system, history)
        assert row.tokens[: len(prompt)].tolist() == prompt
        assert row.tokens[len(prompt) :].tolist() == [*tokenizer.encode(answer), tokenizer.end_id]
        assert row.loss_mask[len(prompt) :].all()


@pytest.mark.parametrize(("name", "image_tokens", "system"), CASES)
def test_an_isolated_turn_is_a_conversation_of_its_own(name, image_tokens, system, tokenizers):
    format, tokenizer = FORMATS[name], tokenizers[name]
    row = encode_chat(tokenizer, format, TURNS, image_tokens, system, isolate_turns=True)
    for number, turn in enumerate(TURNS, start=1):
        alone = encode_chat(tokenizer, format, [turn], image_tokens, system, isolate_turns=True)
        seen = (row.turn_ids == 0) | (row.turn_ids == number)
        for field in ("tokens", "positions", "loss_mask"):
            np.testing.assert_array_equal(getattr(row, field)[seen], getattr(alone, field))
        np.testing.assert_array_equal(alone.positions, np.arange(len(alone.positions)))
    assert set(row.turn_ids) == set(range(len(TURNS) + 1))


@pytest.mark.parametrize("name", FORMATS)
def test_a_chat_sees_all_that_came_before(name, tokenizers):
    format, tokenizer = FORMATS[name], tokenizers[name]
    row = encode_chat(tokenizer, format, TURNS, 2, "", isolate_turns=False)
    np.testing.assert_array_equal(row.positions, np.arange(len(row.tokens)))
    assert not row.turn_ids.any()
    end, user, assistant = format.end, format.user, format.assistant
    expected = f"\n{user}".join(f"{question}{end}\n{assistant}{answer}{end}" for question, answer in TURNS)
    assert tokenizer.decode(row.tokens, specials=True) == spelled(f"<s>{user}{picture_of(name, 2)}{expected}")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isolate_turns", [True, False])
def test_only_answers_and_their_end_are_learned(name, isolate_turns, tokenizers):
    format, tokenizer = FORMATS[name], tokenizers[name]
    row = encode_chat(tokenizer, format, TURNS, 3, SYSTEM, isolate_turns)
    learned = tokenizer.decode(row.tokens[row.loss_mask], specials=True)
    assert learned == "".join(f"{answer}{format.end}" for _, answer in TURNS)
    assert not row.loss_mask[row.tokens == tokenizer.image_id].any()
    dtypes = [getattr(row, field).dtype for field in ("tokens", "positions", "turn_ids", "loss_mask")]
    assert dtypes == [np.int32, np.int32, np.int32, np.bool_]
