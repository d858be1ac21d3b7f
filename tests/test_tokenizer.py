"""Tokeniser: one token a word, any text survives, marks where the models want them, files whole or refused."""

import pickle
import subprocess
import sys

import pytest

from trol_jax.data import tokenizer as tokenizer_lib
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


def test_training_is_deterministic_across_processes(tmp_path):
    code = (
        "import sys; from trol_jax.data.tokenizer import *; from trol_jax.data.prompts import FORMATS;"
        f"train_tokenizer(set({TEXTS!r}), FORMATS['phi3']).save(sys.argv[1])"
    )
    files = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "RAYON_NUM_THREADS": seed}
        subprocess.run([sys.executable, "-c", code, tmp_path / seed], env=environment, check=True)
        files.append((tmp_path / seed / tokenizer_lib.FILE).read_bytes())
    assert files[0] == files[1]


def test_saved_loaded_and_pickled_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokenizer.json"]
    for other in (Tokenizer.load(tmp_path / "run"), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.vocab_size, other.image_id, other.format) == (
            tokenizer.vocab_size, tokenizer.image_id, tokenizer.format,
        )  # fmt: skip
        for specials in (True, False):
            assert other.encode("a <s> red <image>", specials) == tokenizer.encode("a <s> red <image>", specials)


def test_a_save_that_fails_leaves_the_old_file_alone(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer_lib.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_text() == "old"


def test_a_missing_or_damaged_file_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"{}", b"\xff\xfe", whole.replace(b"</s>", b"</z>")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.json (is not a tokeniser|cannot be read)"):
            Tokenizer.load(tmp_path)
