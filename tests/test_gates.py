"""Gates over a dataset: which kind a token is of, that sums are those of all tokens, and what is told of them."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixtures
import golden
import programs
import tiny
from convert.tokenizer import read_tokenizer
from programs import Program
from test_train import error_line
from trol_jax import checkpoint
from trol_jax.data.demo import write_demo
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.data.encode import Encoded, SampleEncoder
from trol_jax.data.prepare import prepare
from trol_jax.data.prompts import FORMATS
from trol_jax.data.sources import open_sources
from trol_jax.data.sources.sample import Sample
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer, Question
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import get_variant, with_tokenizer
from trol_jax.saved import Saved
from trol_jax.study import gates, gates_report
from trol_jax.study.gates import ANSWER, BINS, KINDS, MARK, PICTURE, QUESTION, SYSTEM, Sums, record
from trol_jax.study.samples import open_samples


@pytest.fixture(scope="module", autouse=True)
def variants():
    with fixtures.nano_variants():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fixtures.save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "root")


def load(folder, family, **changes) -> Answerer:
    options = dataclasses.replace(fixtures.run_config().data, system="be kind")
    return Answerer.load(fixtures.save_run(folder, family, data=options, **changes))


# ---------------------------------------------------------------------- kinds of tokens
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("system", ["", "be kind, user"])
def test_each_kind_of_token_is_its_text(tmp_path, family, released, system):
    texts = ["what shape is it?", "a circle, user", "and <|end|> its color?", "red"]
    tokenizer = train_tokenizer(texts, FORMATS[family], vocab_size=340)
    if released:
        tokenizer = read_tokenizer(golden.ROOT / "tokenizer" / family)
    (tmp_path / "1.png").write_bytes(next((golden.ROOT / "preprocess").glob("*_in.png")).read_bytes())
    question, answer, second, reply = texts
    turns = ("user", f"<image>\n{question}"), ("assistant", answer), ("user", second), ("assistant", reply)
    encode = SampleEncoder(str(tmp_path), tokenizer, 16, 4, 1, 500, system)
    encoded = encode(Sample("s", "1", turns, ("1.png",)))
    kinds = gates.kinds_of(encoded, gates.marks_of(tokenizer), tokenizer, bool(system))

    def said(kind, specials=True):
        return tokenizer.decode(encoded.tokens[kinds == kind], specials).replace(" ", "")

    assert said(QUESTION) == (question + second).replace(" ", "")
    assert said(ANSWER) == (answer + reply).replace(" ", "")
    assert said(SYSTEM) == system.replace(" ", "")
    assert (kinds == PICTURE).sum() == 4 and (encoded.tokens[kinds == PICTURE] == tokenizer.image_id).all()
    assert said(MARK).count(tokenizer.format.end) == 4 + bool(system)
    roles = ["system"] * bool(system) + ["user", "assistant"] * 2  # which InternLM2 has as text
    assert said(MARK, specials=False).split() == (roles if family == "internlm2" else [])


def test_sums_are_means_deviations_and_histograms():
    rng = np.random.default_rng(0)
    gate, kinds = rng.random((2, 40), np.float32), rng.integers(0, 2, 40)
    whole, parts = Sums.empty(2), Sums.empty(2)
    whole.add(gate, kinds)
    for start in range(0, 40, 7):
        parts.add(gate[:, start : start + 7], kinds[start : start + 7])
    for sums in (whole, parts):
        np.testing.assert_allclose(sums.mean(0), gate[:, kinds == 0].mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(sums.deviation(1), gate[:, kinds == 1].std(axis=1), rtol=1e-5)
        assert np.isnan(sums.mean(ANSWER)).all()
    expected = np.histogram(gate[1, kinds == 0], BINS, (0, 1))[0]
    np.testing.assert_array_equal(parts.histogram[0, 1], expected)
    np.testing.assert_allclose(
        gates_report.quantile(parts.histogram[0], 0.5)[1], np.median(gate[1, kinds == 0]), atol=0.1
    )


# ---------------------------------------------------------------------- gates of samples
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gates_are_those_of_each_prompt(tmp_path, data, family):
    """Answers find the gates of their prompts by another way: alone, without what follows."""
    answerer = load(tmp_path / "run", family, passes=3 if family == "phi3" else 2)
    found = record(answerer, open_samples(data), batch_size=5, pictures=4)
    rows = EasyVQA("test", data).questions()
    expected, marks = Sums.empty(2), gates.marks_of(answerer.tokenizer)
    for answer in answerer.answer([Question(row["question"], [row["image"]]) for row in rows], 1):
        tokens = np.array(answer.prompt)
        prompt = Encoded("", "", tokens, np.zeros(len(tokens), bool), (), ())
        expected.add(answer.gate, gates.kinds_of(prompt, marks, answerer.tokenizer, system=True))
    assert found.samples == {"yes/no": 6, "color": 3, "shape": 3}
    for kind in (PICTURE, QUESTION, SYSTEM):
        assert found.all.count[kind] == expected.count[kind] > 0
        np.testing.assert_allclose(found.all.mean(kind), expected.mean(kind), atol=1e-6)
    assert found.all.count[MARK] == expected.count[MARK] + len(rows)  # the ends of the answers
    for kind in range(len(KINDS)):
        assert (found.all.histogram[kind].sum(axis=1) == found.all.count[kind]).all()
        np.testing.assert_allclose(sum(sums.total[kind] for sums in found.tasks.values()), found.all.total[kind])
    for kind in (QUESTION, SYSTEM, ANSWER):
        assert found.words.count[kind].sum() == found.all.count[kind]
        np.testing.assert_allclose(found.words.total[kind].sum(axis=0), found.all.total[kind])
    assert len(found.shown) == 3  # each picture once
    image_tokens = answerer.model.config.image_tokens
    assert {each.gate.shape for each in found.shown} == {(2, image_tokens)}


def test_batches_and_more_samples_change_nothing_but_the_sums(tmp_path, data):
    answerer, samples = load(tmp_path / "run", "phi3"), open_samples(data)
    one, several = record(answerer, samples, batch_size=1), record(answerer, samples, batch_size=8)
    np.testing.assert_allclose(one.all.total, several.all.total, rtol=1e-5)
    np.testing.assert_array_equal(one.words.count, several.words.count)
    few = record(answerer, samples, limit=8, batch_size=8)
    assert sum(few.samples.values()) == 8
    held = lambda found: [a.nbytes for part in (found.all, found.words) for a in vars(part).values()]  # noqa: E731
    assert held(few) == held(one)


@pytest.mark.parametrize("family", golden.FAMILIES)
def test_a_converted_checkpoint_has_gates(tmp_path, data, family):
    """Its layers as the original made them; the vocabulary is that of a tokeniser."""
    config, params = golden.load(family)
    tokenizer = train_tokenizer(["what"], FORMATS[family], vocab_size=340)
    config = with_tokenizer(config, tokenizer.vocab_size, tokenizer.image_id)
    drawn = tiny.draw(TroL(config))
    params = {**params, "decoder": params["decoder"] | {key: drawn["decoder"][key] for key in ("embedding", "head")}}
    with checkpoint.Checkpoints(tmp_path / "run" / checkpoint.CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"params": params}, data_state=None, config=None, files=Saved(config, tokenizer).files())
    found = record(Answerer.load(tmp_path / "run"), open_samples(data), batch_size=4)
    assert (found.all.count > 0).all()  # with the original's system message
    assert ((found.all.total > 0) & (found.all.total < found.all.count[:, None])).all()


@pytest.mark.parametrize("variant", ["trol_1_8b", "trol_3_8b", "trol_7b"])
def test_the_released_sizes_have_gates(variant):
    """By shapes alone."""
    config = get_variant(variant)
    model = TroL(config, separate=True)
    params = jax.eval_shape(unstack_layers, nn.unbox(abstract_params(TroL(config))))
    side, length = config.vision.image_size, 2 * config.image_tokens
    tokens, learned = (jax.ShapeDtypeStruct((2, length), dtype) for dtype in (jnp.int32, bool))
    tiles = jax.ShapeDtypeStruct((2, 1, side, side, 3), jnp.uint8)
    found = jax.eval_shape(functools.partial(gates.scores, model), params, tokens, tiles, learned)
    assert found.shape == (2, config.decoder.layers, length)


# ---------------------------------------------------------------------- data
def test_samples_are_those_of_any_data(tmp_path, data, demo):
    easy = open_samples(data)
    assert sorted(sample.id for sample in easy.each) == sorted(map(str, range(12)))
    assert set(easy.names) == {sample.source for sample in easy.each} == {"yes/no", "color", "shape"}
    files = open_samples(demo)
    assert len(files.names) == 11 and len(files.each) == 61
    prepare(open_sources(demo, ["mathvision", "allava_text"]), tmp_path / "prepared")
    prepared = open_samples(tmp_path / "prepared")
    assert set(prepared.names) == {"mathvision", "allava_text"}
    assert len({(sample.source, sample.id) for sample in prepared.each}) == len(prepared.each) == 7
    assert len(open_samples().each) == 9673
    with pytest.raises(UserError, match=r"has neither test/questions\.json nor a file of training data"):
        open_samples(tmp_path)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_training_data_with_several_pictures_and_bad_ones(tmp_path, family):
    root = write_demo(tmp_path / "root")
    broken = "coco/train2017/000000000000.jpg"
    (tmp_path / "root" / broken).write_bytes(b"no picture")
    answerer = load(tmp_path / "run", family, passes=2)
    found = record(answerer, open_samples(root), batch_size=8)
    assert set(found.samples) == set(open_samples(root).names)
    assert found.bad == 1 and broken in found.why and "sharegpt4v_caption" in found.why
    assert found.tasks["mathplus"].count[PICTURE] == 0 < found.tasks["mathplus"].count[ANSWER]
    assert all(each.gate.shape[1] % answerer.model.config.image_tokens == 0 for each in found.shown)


def test_models_and_data_without_gates_are_refused(tmp_path, data):
    with pytest.raises(UserError, match="takes one pass over prompts: it has no gates"):
        record(load(tmp_path / "one", "phi3", passes=1), open_samples(data))
    root = fixtures.save_data(tmp_path / "data", pictures=1)
    samples = open_samples(root)
    (root / "test" / "images" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the samples can be used; the first: .*0\.png is not a picture"):
        record(load(tmp_path / "run", "phi3"), samples)


# ---------------------------------------------------------------------- the report
def test_words_are_told_with_their_space():
    tokenizer = train_tokenizer(["is it red?", "red"], FORMATS["phi3"], vocab_size=340)
    (first,), (second,) = tokenizer.encode("red"), tokenizer.encode(" red", after="x")
    assert [gates_report.text_of(tokenizer, token) for token in (first, second)] == ["red", " red"]


@pytest.mark.parametrize(("family", "which"), [("internlm2", "data"), ("phi3", "demo")])
def test_the_program_writes_a_report(tmp_path, request, family, which):
    run, root = fixtures.save_run(tmp_path / "run", family), request.getfixturevalue(which)
    flags = ("--gates", f"--checkpoint={run}", f"--data={root}", "--min_count=2", "--limit=40")
    status, out, err = Program(programs.launch("study"), *flags).wait()
    assert status == 0, err
    folder = run / "gates"
    assert {path.name for path in folder.iterdir()} == {"gates.json", "gates.md", "gates.html", *gates_report.PLOTS}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in gates_report.PLOTS)
    told = json.loads((folder / "gates.json").read_text())
    assert len(told["kinds"]["picture"]["mean"]) == 2 and told["model"] == f"nano_{family}" and told["bad"] == 0
    assert sum(part["samples"] for part in told["tasks"].values()) == min(40, 12 if which == "data" else 61)
    means = [word["mean"] for word in told["words"]]
    assert means == sorted(means, reverse=True) and all(word["count"] >= 2 for word in told["words"])
    assert (folder / "gates.md").read_text() in out
    assert (folder / "gates.html").read_text().count("data:image/png;base64,") == len(gates_report.PLOTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --study=NAME, --gates and --early_exit"),
        (["--gates"], "--gates needs --checkpoint=RUN"),
        (["--gates", "--early_exit"], "give one of --study=NAME, --gates and --early_exit"),
        (["--gates", "--checkpoint=x", "--seeds=2"], "--seeds cannot go with --gates"),
        (["--study=passes", "--data=x"], "--data cannot go with --study"),
    ],
)
def test_flags_of_other_jobs_are_refused(flags, message):
    assert message in error_line(Program(programs.launch("study"), *flags).wait())
