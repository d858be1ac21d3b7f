"""Tokeniser: one token a word, any text survives, marks where the models want them, content sound or refused."""

import pickle
import subprocess
import sys

import pytest

from trol_jax.data.easy_vqa import ANSWERS, EasyVQA
from trol_jax.data.prompts import FORMATS
from trol_jax.data.tokenizer import Tokenizer, train_tokenizer
from trol_jax.errors import UserError

TEXTS = ["is there a red circle in the image?", "what color is the shape?", *ANSWERS]


@pytest.fixture(params=FORMATS)
def format(request):
    return FORMATS[request.param]


@pytest.fixture
def tokenizer(format):
    return train_tokenizer(TEXTS, format)


def test_words_of_easy_vqa_are_one_token_each(format):
    questions = {row["question"] for row in EasyVQA("train").questions()}
    tokenizer = train_tokenizer([*questions, *ANSWERS], format)
    assert max(tokenizer.vocab_size, tokenizer.image_id + 1) <= 512
    assert all(len(tokenizer.encode(answer)) == 1 for answer in ANSWERS)
    for row in EasyVQA("test").questions():
        assert len(tokenizer.encode(row["question"])) == len(row["question"].rstrip("?").split()) + 1


@pytest.mark.parametrize("text", ["", " ", "a\tb\n\n c", "Ünïcödé 漢字 🙂🏽", "\x00\x7f", "no  circle ", "a\u200bb"])
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, specials=False)) == text


def test_marks_are_one_id_unless_taken_as_text(tokenizer, format):
    for mark in (*format.specials, format.image):
        (mark_id,) = tokenizer.encode(mark)
        assert tokenizer.decode([mark_id]) == ""
        assert tokenizer.decode([mark_id], specials=True) == mark
        plain = tokenizer.encode(mark, specials=False)
        assert mark_id not in plain and tokenizer.decode(plain) == mark
    assert tokenizer.encode(format.end) == [tokenizer.end_id]
    assert tokenizer.encode(format.eos) == [tokenizer.eos_id] == [tokenizer.pad_id]


def test_the_image_token_of_internlm2_lies_beyond_the_vocabulary():
    internlm2, phi3 = (train_tokenizer(TEXTS, FORMATS[name]) for name in ("internlm2", "phi3"))
    assert internlm2.image_id == internlm2.vocab_size
    assert phi3.image_id < phi3.vocab_size
    assert internlm2.encode("<image>") == [internlm2.image_id]


def test_room_for_no_word_is_still_enough(format):
    least = 256 + len(format.specials) + 1
    tokenizer = train_tokenizer(TEXTS, format, vocab_size=least)
    assert tokenizer.decode(tokenizer.encode("red circle")) == "red circle"
    with pytest.raises(ValueError, match=f"bytes and marks alone are {least}"):
        train_tokenizer(TEXTS, format, vocab_size=least - 1)


def test_training_is_deterministic_across_processes():
    code = (
        "import sys; from trol_jax.data.tokenizer import *; from trol_jax.data.prompts import FORMATS;"
        f"sys.stdout.buffer.write(train_tokenizer(set({TEXTS!r}), FORMATS['phi3']).dump())"
    )
    outputs = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "RAYON_NUM_THREADS": seed}
        outputs.append(subprocess.check_output([sys.executable, "-c", code], env=environment))
    assert outputs[0] == outputs[1] == train_tokenizer(TEXTS, FORMATS["phi3"]).dump()


def test_dumped_parsed_and_pickled_it_is_the_same(tokenizer):
    for other in (Tokenizer.parse(tokenizer.dump(), "a"), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.vocab_size, other.image_id, other.format) == (
            tokenizer.vocab_size, tokenizer.image_id, tokenizer.format,
        )  # fmt: skip
        for specials in (True, False):
            assert other.encode("a <s> red <image>", specials) == tokenizer.encode("a <s> red <image>", specials)


def test_damaged_content_is_refused_by_name(tokenizer):
    whole = tokenizer.dump()
    for damaged in (b"", whole[: len(whole) // 2], b"{}", b"\xff\xfe", whole.replace(b"</s>", b"</z>")):
        with pytest.raises(UserError, match=r"here/tokenizer\.json is not a tokeniser"):
            Tokenizer.parse(damaged, "here/tokenizer.json")
