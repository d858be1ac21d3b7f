"""Answers of a checkpoint: the same in any company, from pictures of any size, with clear words for bad input."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fixtures
import programs
import tiny
from programs import Program
from trol_jax.errors import UserError
from trol_jax.infer import answer as answering
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import GREEDY, Decoding
from trol_jax.infer.engine import padded
from trol_jax.ops.image import normalize

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(3)]
LONG = "is there a red shape in the image and what color is the blue circle?"
MIXED = [
    Question("what color is it?", PICTURES[:1]),
    Question("what shape is in the image?"),
    Question(LONG, PICTURES[1:2]),
    Question("is there a red shape?", PICTURES[1:]),
    Question("what color is it?", PICTURES[1:2]),
    Question("and the other?", PICTURES[:1], [("what color is it?", "red"), (LONG, "yes")]),
]


@pytest.fixture(scope="module", autouse=True)
def variants():
    with fixtures.nano_variants():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fixtures.save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def answerer(run):
    return Answerer.load(run)


def ask(answerer, questions, decoding=GREEDY, batch_size=3):
    return list(answerer.answer(questions, 4, decoding, batch_size))


def same(a, b):
    assert (a.text, a.tokens, a.stopped) == (b.text, b.tokens, b.stopped)
    np.testing.assert_allclose(a.gate_image, b.gate_image, rtol=0, atol=1e-6)  # NaN equals NaN here
    np.testing.assert_allclose(a.gate_text, b.gate_text, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_answers_do_not_depend_on_the_batch(family, tmp_path):
    answerer = Answerer.load(fixtures.save_run(tmp_path, family))
    lengths = {len(answerer.prompt(question, [1] * len(question.pictures))) for question in MIXED}
    assert len(lengths) == 5
    together = ask(answerer, MIXED)
    # A question of each kind is enough for one of the families: no picture, two of them, a conversation.
    for i in (1, 3, 5) if family == "internlm2" else range(6):
        same(ask(answerer, [MIXED[i]])[0], together[i])
    assert len({tuple(answer.tokens) for answer in together}) > 2
    assert not np.allclose(together[0].gate_image, together[4].gate_image)  # the picture matters


def test_gates_are_those_of_the_prompt(answerer):
    prompt = np.array([answerer.prompt(MIXED[0], [1])])
    vision = answerer.model.config.vision
    pictures = normalize(jnp.asarray(PICTURES[0]), vision.mean, vision.std)[None, None]
    _, out = jax.jit(answerer.model.apply)({"params": answerer.params}, prompt, pictures)
    gate, is_image = np.asarray(out["gate"])[:, 0, 0], prompt[0] == answerer.tokenizer.image_id
    (answer,) = ask(answerer, [MIXED[0]])
    assert answer.prompt == prompt[0].tolist()
    np.testing.assert_allclose(answer.gate, gate, rtol=1e-5)
    np.testing.assert_allclose(answer.gate_image, gate[:, is_image].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(answer.gate_text, gate[:, ~is_image].mean(axis=1), rtol=1e-5)
    (text_only,) = ask(answerer, [MIXED[1]])
    assert np.isnan(text_only.gate_image).all() and np.isfinite(text_only.gate_text).all()


def test_a_picture_of_another_size_is_resized(answerer):
    large = np.asarray(Image.fromarray(PICTURES[0]).resize((64, 48), Image.Resampling.NEAREST))
    (answer,) = ask(answerer, [Question("what color is it?", [large])])
    (original,) = ask(answerer, MIXED[:1])
    np.testing.assert_allclose(answer.gate_image, original.gate_image, atol=0.1)


def test_an_answer_ends_at_the_end_mark_which_is_not_text(answerer):
    (free,) = ask(answerer, MIXED[:1])
    assert len(free.tokens) == 4 and not free.stopped
    last = next(i for i in range(1, 4) if free.tokens[i] not in free.tokens[:i])
    tokenizer = copy.copy(answerer.tokenizer)
    tokenizer.end_id = free.tokens[last]
    (ended,) = ask(dataclasses.replace(answerer, tokenizer=tokenizer), MIXED[:1])
    assert ended.tokens == free.tokens[: last + 1] and ended.stopped
    assert ended.text == tokenizer.decode(free.tokens[:last]).strip()


def test_pictures_of_several_tiles_share_a_batch_with_others(tmp_path, monkeypatch):
    monkeypatch.setitem(fixtures.VARIANTS, "nano_phi3", tiny.config("phi3", name="nano_phi3", max_tiles=2))
    answerer = Answerer.load(fixtures.save_run(tmp_path))
    rng = np.random.default_rng(0)
    # 2 tiles and the whole, one, 2 and the whole; and several pictures
    wide, square, high = (rng.integers(0, 256, shape, np.uint8) for shape in [(16, 40, 3), (16, 16, 3), (50, 20, 3)])
    questions = [Question("what is it?", pictures) for pictures in ([wide], [square], [], [high], [square, wide])]
    patches, lengths = answerer.model.config.image_tokens, [len(answerer.request(each, 4).tokens) for each in questions]
    assert lengths[0] - lengths[1] == 2 * patches and lengths[4] - lengths[2] == 4 * patches + 4  # with <img> </img>
    for decoding, asked, alone in ((GREEDY, questions, 5), (Decoding(beams=2), questions[:3], 2)):
        for together, question in zip(ask(answerer, asked, decoding), asked[:alone], strict=False):
            same(together, *ask(answerer, [question], decoding))


def test_a_tower_that_never_learned_to_answer_says_so(tmp_path):
    with pytest.raises(UserError, match=r"cannot answer: it was trained for words .* \(config\.start_from\)"):
        Answerer.load(fixtures.save_run(tmp_path, objective="words"))


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(answerer, question):
    with pytest.raises(UserError, match="question is empty"):
        ask(answerer, [Question(question)])


@pytest.mark.parametrize(
    ("decoding", "questions"),
    [
        (Decoding(beams=3), MIXED[1:3]),
        (Decoding(temperature=2.0, top_k=9, top_p=0.9, seed=5), MIXED[:4]),
    ],
)
def test_searched_and_drawn_answers_do_not_depend_on_the_batch_either(answerer, decoding, questions):
    together = ask(answerer, questions, decoding)
    assert [answer.tokens for answer in together] != [answer.tokens for answer in ask(answerer, questions)]
    for i, (question, answer) in enumerate(zip(questions[:3], together, strict=False)):
        here = dataclasses.replace(decoding, seed=decoding.seed + i) if decoding.temperature else decoding
        same(ask(answerer, [question], here)[0], answer)


def test_long_prompts_are_searched_few_at_a_time(answerer, monkeypatch):
    together, searched = ask(answerer, MIXED[:3], Decoding(beams=2)), []
    length = max(len(answerer.request(each, 4).tokens) for each in MIXED[:3])
    monkeypatch.setattr(answering, "PROMPT_TOKENS", 2 * padded(length))
    search = answering.search
    noted = lambda *args, **how: searched.append(args[2].shape) or search(*args, **how)  # noqa: E731
    monkeypatch.setattr(answering, "search", noted)
    for one, other in zip(together, ask(answerer, MIXED[:3], Decoding(beams=2)), strict=True):
        same(one, other)
    assert [rows for rows, _ in searched] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0, must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, must be between 0 and 1e6"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5, must be between 0 and 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"beams": 2, "temperature": 1.0}, "choose a search or drawing"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Decoding(**options)


def test_no_room_for_an_answer_is_refused(answerer):
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        list(answerer.answer(MIXED[:1], 0))


@pytest.mark.parametrize("decoding", [GREEDY, Decoding(beams=2), Decoding(temperature=1.0)])
def test_what_the_context_of_the_model_cannot_hold_is_refused(answerer, decoding):
    length = len(answerer.prompt(MIXED[2], [1]))
    config = answerer.model.config
    rope = dataclasses.replace(config.decoder.rope, max_positions=length + 3)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, rope=rope))
    short = dataclasses.replace(answerer, model=dataclasses.replace(answerer.model, config=config))
    refused = f"the prompt has {length} tokens, which with an answer of 4 is more than the {length + 3} that fit"
    fits, long = short.answer(MIXED[1:3], 4, decoding, skip=True)
    assert fits.tokens and str(long).startswith(refused)
    with pytest.raises(UserError, match=refused):
        list(short.answer(MIXED[2:3], 4, decoding))
    with pytest.raises(UserError, match=refused):
        "".join(short.reply(MIXED[2], 4, decoding))
    with short.serve(1) as server, answerer.serve(1, length=length) as shorter:
        assert (server.engine.length, shorter.engine.length) == (length + 3, length)
    with pytest.raises(UserError, match=f"more than the {length} that fit"):
        answerer.request(MIXED[2], 1, decoding, length)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no checkpoint at {tmp_path / 'nothing'}"):
        Answerer.load(tmp_path / "nothing")


def test_a_damaged_tokenizer_is_found(tmp_path):
    file = fixtures.save_run(tmp_path) / "checkpoints" / "1" / "tokenizer.json"
    file.write_text(file.read_text().replace("circle", "cirkle"))
    with pytest.raises(UserError, match=r"tokenizer.json"):
        Answerer.load(tmp_path)


def generate(*arguments):
    return Program(programs.launch("generate"), *arguments).wait()


def test_the_program_prints_the_answer_alone(run, answerer, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(PICTURES[0]).save(picture)
    asked = f"--checkpoint={run}", f"--image={picture}", "--question=what color is it?", "--max_new_tokens=4"
    said = ask(answerer, MIXED[:1])[0].text + "\n"
    assert programs.fresh("-c", programs.NANO + programs.launch("generate"), *asked) == (0, said, "")
    status, _, err = generate(f"--checkpoint={run}", "--question=what color is it?", "--beams=2", "--temperature=1")
    assert (status, err.count("\n")) == (2, 1) and "choose a search or drawing" in err


def test_the_program_names_a_file_that_is_no_picture(run, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("no picture")
    status, out, err = generate(f"--checkpoint={run}", f"--image={file}", "--question=what color is it?")
    assert status == 2 and out == ""
    assert err.startswith(f"error: {file} is not a picture") and err.count("\n") == 1
