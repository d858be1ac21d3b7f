"""Released tokenisers: the ids that the original recorded, also piece by piece; damaged and odd files are refused.

tests/data/golden/tokenizer: `expected.json` is the original's. `sentencepiece.json` has the ids that the sentencepiece
library gives random strings, for the same model and for `awkward`, a hand-made one with what the released vocabulary
has too: no space before a text, equal scores, runs of a letter, frozen pieces that are no marks of the chat.
"""

import json
import shutil
import struct
from pathlib import Path

import pytest
import tokenizers
from tokenizers import normalizers

from convert import tokenizer as convert
from convert.tokenizer import read_tokenizer
from trol_jax.data.prompts import FORMATS, SYSTEM, encode_chat, encode_prompt, render_prompt
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError

ROOT = Path(__file__).parent / "data" / "golden" / "tokenizer"
EXPECTED = json.loads((ROOT / "expected.json").read_text())
LIBRARY = json.loads((ROOT / "sentencepiece.json").read_text())
QUESTIONS = ["", "q", "  two spaces\n\nand a line", "\nline first", "트롤 🙂 问题", "ends in a space "]
BYTES = [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
LETTERS = [(text, -1.0 - i, 1) for i, text in enumerate([convert.SPACE, "a", "b", "c"])]
MARKS = [(f"[UNUSED_TOKEN_{i}]", 0.0, 4) for i in (145, 146)]
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES, *LETTERS, *MARKS]
TRAINER, NORMALIZER = {3: 2, 35: 1}, {3: 0, 4: 0, 5: 1}


@pytest.fixture(scope="module", params=FORMATS)
def released(request):
    return read_tokenizer(ROOT / request.param)


@pytest.fixture
def folder(tmp_path, request):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(ROOT / request.param, tmp_path / request.param))


internlm2, phi3 = (pytest.mark.parametrize("folder", [name], indirect=True) for name in FORMATS)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_model(path, pieces=PIECES, trainer=TRAINER, normalizer=NORMALIZER):
    def field(number, value):
        if isinstance(value, int):
            return bytes([number << 3 & 127 | 128, number >> 4, value])
        if isinstance(value, float):
            return bytes([number << 3 | 5]) + struct.pack("<f", value)
        value = value.encode() if isinstance(value, str) else value
        size = len(value)
        return bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + value

    def message(fields):
        return b"".join(field(number, value) for number, value in fields.items())

    parts = [(1, message(dict(enumerate(piece, start=1)))) for piece in pieces]
    parts += [(2, message(trainer)), (3, message(normalizer))]
    path.write_bytes(b"".join(field(*part) for part in parts))


def test_text_gets_the_ids_that_the_original_gave_it(released):
    for text, ids in EXPECTED[released.format.name]:
        assert released.encode(text) == ids


def test_ids_get_the_text_that_the_original_gave_them(released):
    ids, text = EXPECTED[f"{released.format.name}_decode"]
    assert released.decode(ids, specials=True) == text


def test_marks_are_where_the_model_has_them():
    internlm2, phi3 = (read_tokenizer(ROOT / name) for name in FORMATS)
    assert (internlm2.vocab_size, internlm2.image_id, internlm2.end_id, internlm2.eos_id) == (520, 520, 3, 2)
    assert (phi3.vocab_size, phi3.image_id, phi3.end_id, phi3.eos_id) == (530, 527, 523, 2)


def test_stored_beside_a_checkpoint_it_is_the_same(released, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(released.dump())
    for again in (Tokenizer.parse(released.dump(), "here"), read_tokenizer(tmp_path)):
        assert again.dump() == released.dump()
        for text, ids in EXPECTED[released.format.name]:
            assert again.encode(text) == ids


def test_recorded_prompts_have_the_same_ids_piece_by_piece(released):
    format, seen = released.format, 0
    for text, ids in EXPECTED[released.format.name]:
        if not text.startswith(format.bos + format.system):
            continue
        question = text.split(format.user)[1].split(format.end)[0].replace(format.image, "")
        pictures = question.count(format.image_start) if format.image_start else min(1, ids.count(released.image_id))
        question = question.replace(format.image_start + format.image_end, "")
        count = ids.count(released.image_id) // max(pictures, 1)
        tokens = encode_prompt(released, format, question, count)
        if pictures == 2:  # the original makes a second picture of an "<image>" in the question
            first = tokens.index(released.image_id) - 1
            tokens[first:first] = tokens[first : first + count + 2]
        assert tokens == ids
        seen += 1
    assert seen == 8


def prepending():
    """Phi-3's tokeniser as older files have it: a space before the text behind each mark."""
    raw = json.loads((ROOT / "phi3" / "tokenizer.json").read_text())
    backend = tokenizers.Tokenizer.from_str(json.dumps(raw | {"pre_tokenizer": None}))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return Tokenizer(backend)


@pytest.mark.parametrize("make", [*(lambda name=name: read_tokenizer(ROOT / name) for name in FORMATS), prepending])
@pytest.mark.parametrize("image_tokens", [0, 3])
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_any_conversation_has_the_same_ids_piece_by_piece(make, image_tokens, system):
    tokenizer = make()
    format, end = tokenizer.format, tokenizer.format.end
    for question in QUESTIONS:
        prompt = render_prompt(format, question, image_tokens, system)
        assert encode_prompt(tokenizer, format, question, image_tokens, system) == tokenizer.encode(prompt)
        turns = [(question, "an answer"), ("why?", question)]
        text = f"{prompt}an answer{end}\n{format.user}why?{end}\n{format.assistant}{question}{end}"
        assert encode_chat(tokenizer, format, turns, image_tokens, system).tokens.tolist() == tokenizer.encode(text)


def test_marks_in_a_question_are_plain_text(released):
    format = released.format
    for mark in (format.eos, format.end, format.image, format.user):
        tokens = encode_prompt(released, format, f"what is {mark}?", 2)
        assert tokens.count(released.image_id) == 2 and released.eos_id not in tokens
        assert tokens.count(released.end_id) == 2
        assert f"what is {mark}?" in released.decode(tokens, specials=True)


@pytest.mark.parametrize("name", ["internlm2", "awkward"])
def test_random_strings_have_the_ids_of_the_sentencepiece_library(name):
    tokenizer = read_tokenizer(ROOT / name)
    assert len(LIBRARY[name]) == 200
    for text, ids in LIBRARY[name]:
        assert tokenizer.encode(text) == ids
        spelled = text if name == "awkward" else None  # a space before each text is not taken back
        assert spelled is None or tokenizer.decode(ids, specials=True) == spelled.replace("▁", " ")


def test_only_marks_of_the_chat_become_plain_text():
    tokenizer = read_tokenizer(ROOT / "awkward")
    (dash,) = tokenizer.encode("——")
    assert tokenizer.encode("——", specials=False) == [dash]
    assert dash in tokenizer.encode("<s>——", specials=False)
    assert len(tokenizer.encode("[UNUSED_TOKEN_145]", specials=False)) > 1


def test_a_mark_alone_is_its_id_alone(released):
    for mark in (*released.format.specials, released.format.image):
        assert len(released.encode(mark)) == 1


@internlm2
def test_the_image_mark_is_added_where_the_base_lacks_it(folder):
    (folder / "added_tokens.json").unlink()
    edit(folder / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder"))
    tokenizer = read_tokenizer(folder)
    assert tokenizer.image_id == 520
    for text, ids in EXPECTED["internlm2"]:
        assert tokenizer.encode(text) == ids


@phi3
def test_limits_of_length_that_a_file_has_are_lifted(folder):
    limits = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", lambda content: content.update(truncation=limits))
    for text, ids in EXPECTED["phi3"]:
        assert read_tokenizer(folder).encode(text) == ids


@pytest.mark.parametrize("folder", FORMATS, indirect=True)
def test_a_missing_file_is_named(folder):
    name = "tokenizer.model" if folder.name == "internlm2" else "tokenizer.json"
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} cannot be read: No such file.*; download"):
        read_tokenizer(folder)


@pytest.mark.parametrize("folder", FORMATS, indirect=True)
def test_damaged_files_are_refused(folder):
    path = folder / ("tokenizer.model" if folder.name == "internlm2" else "tokenizer.json")
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=rf"{path.name} is not a tokeniser .*; download it again") as error:
            read_tokenizer(folder)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    for name in ("tokenizer_config.json", "added_tokens.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-10])
        with pytest.raises(UserError, match=f"{name} cannot be read as JSON"):
            read_tokenizer(folder)
        (folder / name).write_bytes(content)


def test_no_byte_of_a_model_can_break_the_program(tmp_path):
    write_model(tmp_path / "tokenizer.model")
    whole = (tmp_path / "tokenizer.model").read_bytes()
    assert read_tokenizer(tmp_path).encode("ab c") == [260, 261, 259, 262]
    for at in range(0, len(whole), 11):
        (tmp_path / "tokenizer.model").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_tokenizer(tmp_path)  # a change of a letter or a score cannot be seen
        except UserError as error:
            assert "tokenizer.model is not a tokeniser" in str(error)


ODD = {
    "model_type is 1": {"trainer": {3: 1, 35: 1}},
    "byte_fallback is 0": {"trainer": {3: 2}},
    "treat_whitespace_as_suffix is 1": {"trainer": TRAINER | {24: 1}},
    "remove_extra_whitespaces is 1": {"normalizer": {3: 0}},
    "escape_whitespaces is 0": {"normalizer": NORMALIZER | {5: 0}},
    "precompiled_charsmap is a table of 3 bytes": {"normalizer": NORMALIZER | {2: b"abc"}},
    "no pieces for the bytes <0xFF>": {"pieces": [piece for piece in PIECES if piece[0] != "<0xFF>"]},
    "pieces are equal": {"pieces": [*PIECES, PIECES[-1]]},
    "pieces 'x' are of a kind": {"pieces": [*PIECES, ("x", 0.0, 5)]},
    "first piece is '<s>'": {"pieces": PIECES[1:]},
    "pieces ax have letters": {"pieces": [*PIECES, ("ax", 0.0, 1)]},
    "'ab' and 'bc' have one score": {"pieces": [*PIECES, ("ab", -9.0, 1), ("bc", -9.0, 1)]},
    "chat marks of none": {"pieces": PIECES[:-1]},
    "it has no pieces": {"pieces": []},
}


@pytest.mark.parametrize("message", ODD)
def test_models_of_another_kind_are_refused(message, tmp_path):
    write_model(tmp_path / "tokenizer.model", **ODD[message])
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)


@internlm2
@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"<image>": 521}, r"added_tokens\.json: '<image>' has id 521, in tokenizer_config\.json it has 520"),
        ({"<picture>": 520}, r"'<picture>' has id 520, which tokenizer_config\.json gives to '<image>'"),
        ({"<picture>": 522}, "'<picture>' has id 522, but the next free id is 521"),
        ({"<picture>": 7}, "'<picture>' has id 7, but '<0x02>' has id 7"),
        ({"<0x02>": 521}, "'<0x02>' has id 521, but '<0x02>' has id 7"),
        ({"<picture>": "521"}, "'<picture>' has id '521', which is no number"),
    ],
)
def test_added_tokens_that_do_not_fit_are_refused(folder, added, message):
    (folder / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(UserError, match=message):
        read_tokenizer(folder)


@phi3
def test_added_tokens_that_contradict_tokenizer_json_are_refused(folder):
    edit(folder / "added_tokens.json", lambda added: added.update({"<quad>": 540}))
    with pytest.raises(UserError, match="'<quad>' has id 540, but the next free id is 530"):
        read_tokenizer(folder)


@phi3
def test_other_classes_and_types_are_refused(folder):
    edit(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer={"type": "Novel"}))
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokeniser"):
        read_tokenizer(folder)
    edit(folder / "tokenizer_config.json", lambda config: config.update(tokenizer_class="QwenTokenizer"))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: tokenizer_class is 'QwenTokenizer', known are"):
        read_tokenizer(folder)
    edit(folder / "tokenizer_config.json", lambda config: config.update(
        tokenizer_class="LlamaTokenizer", added_tokens_decoder={"x": {}}))  # fmt: skip
    shutil.copy(ROOT / "phi3" / "tokenizer.json", folder)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: added_tokens_decoder cannot be read"):
        read_tokenizer(folder)
