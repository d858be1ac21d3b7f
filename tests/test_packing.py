"""Samples of the sources as tokens, several to a row, and a loss that does not notice."""

import dataclasses
import errno
import functools
import hashlib
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

import fixtures
import tiny
from test_images import encoded
from trol_jax import typed
from trol_jax.data import images
from trol_jax.data.demo import write_demo
from trol_jax.data.encode import SampleEncoder, paired
from trol_jax.data.mixture import Mixture, Part
from trol_jax.data.packing import MixtureOptions, Packer, Rows, train_iterator
from trol_jax.data.prompts import FORMATS
from trol_jax.data.sources import open_sources
from trol_jax.data.sources.sample import Sample
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.errors import StorageError, UserError
from trol_jax.ops.losses import next_token_loss
from trol_jax.sharding import hosts
from trol_jax.train import config as config_lib
from trol_jax.train import evaluation
from trol_jax.train.config import EvaluationOptions
from trol_jax.train.feed import Feed
from trol_jax.train.loop import train

SHAPE = Rows(rows=4, length=512, tiles=12, image_size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "root")


@functools.cache
def tokenizer(family):
    return train_tokenizer(["what is it? a red circle, and why: because of 1 + 1 = 2"] * 2, FORMATS[family], 340)


def encoder(root, family="internlm2", max_length=512, **changes):
    options = dict(image_size=16, tile_tokens=4, max_tiles=6, system="") | changes
    return SampleEncoder(str(root), tokenizer(family), max_length=max_length, **options)


def mixture(root, seed=0):
    sources = open_sources(root)
    return Mixture(sources, [Part(name) for name in sources], seed)


def test_pictures_stand_where_the_data_has_them(root):
    pictures = [sample.pictures[0] for sample in open_sources(root)["docdownstream"] if sample.pictures][:2]
    sample = Sample("s", "1", (("user", "first <image> then\n<image>\n?"), ("assistant", "yes")), tuple(pictures))
    made = encoder(root, "phi3", tile_tokens=2)(sample)
    text = tokenizer("phi3").decode(made.tokens, specials=True)
    inside = [f"<img>{'<IMG_CONTEXT>' * 2 * count}</img>" for count in made.tiles]
    assert f"first {inside[0]} then{inside[1]}?<|end|>" in text


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_cut_never_goes_through_a_picture(root, family):
    picture = next(sample for sample in open_sources(root)["sharegpt4v_instruct"] if sample.pictures).pictures[0]
    turns = (("user", "is it red?"), ("assistant", "yes"), ("user", "<image>and this?"), ("assistant", "no, not red"))
    sample = Sample("source", "1", turns, (picture,))
    whole = encoder(root, family)(sample)
    image = tokenizer(family).image_id
    first, last = np.flatnonzero(whole.tokens == image)[[0, -1]]
    around = int(family == "phi3")
    ends = set()
    for length in range(first - 2, len(whole.tokens)):
        cut = encoder(root, family, max_length=length)(sample)
        np.testing.assert_array_equal(cut.tokens, whole.tokens[: len(cut.tokens)])
        assert len(cut.tokens) + cut.cut == len(whole.tokens) and len(cut.tiles) == len(cut.pictures)
        assert (cut.tokens == image).sum() == 4 * sum(cut.tiles)
        ends.add(len(cut.tokens))
    assert not ends & set(range(first - around + 1, last + 1 + around)) and len(ends) > 5
    with pytest.raises(UserError, match="sample 1 of source: nothing of an answer is within the 8 tokens"):
        encoder(root, family, max_length=8)(sample)


@pytest.mark.parametrize(
    ("turns", "pictures", "message"),
    [
        ((("assistant", "hello"),), (), "turn 1 is by the assistant; they must alternate"),
        ((("user", "a"), ("user", "b")), (), "turn 2 is by the user"),
        ((("user", "a"), ("assistant", " ")), (), "no answer"),
        ((("user", "<image>"), ("assistant", "b")), (), "1 marks <image> in the questions, 0 pictures"),
        ((("user", "a"), ("assistant", "b")), ("a.jpg",), "0 marks <image> in the questions, 1 pictures"),
        ((("user", "<image>"), ("assistant", "b")), ("../a.jpg",), "not one below the root"),
        ((("user", "a"), ("assistant", "b \ud83d")), (), r"'\\ud83d' in 'b \\ud83d' is half of a surrogate pair"),
    ],
)
def test_samples_that_cannot_be_used_are_named(root, turns, pictures, message):
    with pytest.raises(UserError, match=f"sample 7 of web: .*{message}"):
        encoder(root)(Sample("web", "7", turns, pictures))


def test_a_last_question_without_an_answer_is_left_out():
    assert paired((("user", "a"), ("assistant", "b"), ("user", "c"))) == [("a", "b")]


def packed(root, count, family="internlm2", **options):
    with Packer(mixture(root), encoder(root, family), SHAPE, bad="skip", **options) as packer:
        return [next(packer) for _ in range(count)], packer.counts


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_hold_every_sample_whole_and_little_padding(root, family):
    batches, counts = packed(root, 12, family)
    rows = [
        tuple(batch["tokens"][row][batch["segment_ids"][row] == number].tolist())
        for batch in batches for row in range(SHAPE.rows) for number in range(1, batch["segment_ids"][row].max() + 1)
    ]  # fmt: skip
    encode, samples = encoder(root, family), mixture(root)
    known = {tuple(encode(samples[i]).tokens.tolist()) for i in range(len(samples))}
    assert set(rows) <= known and len(rows) == sum(n for name, n in counts.items() if name.startswith("samples/"))
    assert counts["padding"] / (counts["padding"] + counts["tokens"]) < 0.05
    assert counts["tokens"] == sum((batch["segment_ids"] != 0).sum() for batch in batches)
    for batch in batches:
        pictures = (batch["tokens"] == tokenizer(family).image_id).sum(axis=1) // 4
        assert ((batch["images"].reshape(SHAPE.rows, SHAPE.tiles, -1).any(axis=2)).sum(axis=1) <= pictures).all()
        assert batch["loss_mask"].any(axis=1).all() and not batch["loss_mask"][batch["segment_ids"] == 0].any()


def test_an_epoch_loses_nothing_and_repeats_nothing(root):
    """All samples that were drawn are in rows or wait."""
    with Packer(mixture(root), encoder(root), SHAPE) as packer:
        for _ in range(5):
            next(packer)
        state, counts = packer.get_state(), packer.counts
    placed = sum(number for name, number in counts.items() if name.startswith("samples/"))
    assert placed + len(state["waiting"]) == state["next"] and len(set(state["waiting"])) == len(state["waiting"])


def test_it_goes_on_where_it_stopped_with_any_number_of_processes(root):
    batches, _ = packed(root, 6)
    with Packer(mixture(root), encoder(root), SHAPE, bad="skip") as packer:
        for _ in range(3):
            next(packer)
        state = packer.get_state()
    shares = [(0, 3), (1, 2)]
    for share, own in enumerate(shares):
        with Packer(mixture(root), encoder(root), SHAPE, bad="skip", shares=shares, share=share) as packer:
            packer.set_state(state)
            for batch in batches[3:]:
                for name, part in next(packer).items():
                    np.testing.assert_array_equal(part, batch[name][list(own)], err_msg=name)


def test_bad_samples_fail_or_are_skipped_counted_and_named(root, caplog):
    good = mixture(root)
    bad = Sample("web", "7", (("assistant", "hello"),))
    broken = Sample("web", "8", (("user", "<image>what?"), ("assistant", "nothing")), (b"no picture",))

    class Samples:
        def __getitem__(self, index):
            return {3: bad, 5: broken}.get(index) or good[index]

        def __len__(self):
            return len(good)

    with Packer(Samples(), encoder(root), SHAPE) as packer, pytest.raises(UserError, match="sample 7 of web: turn 1"):
        next(packer)
    with Packer(Samples(), encoder(root), SHAPE, bad="skip") as packer:
        batches = [next(packer) for _ in range(2)]
        told = packer.shares_so_far()
        assert packer.counts["bad"] == told["data/bad"] == 2 and told["data/epochs"] == told["data/samples"] / len(good)
        assert told["data/samples"] == 1 + sum(n for name, n in packer.counts.items() if name.startswith("samples/"))
    named = sorted(set(caplog.messages))
    assert named[0].startswith("left out: sample 7 of web: turn 1 is by the assistant")
    assert named[1].startswith("nothing is learned of sample 8 of web: the picture is not a picture") and not named[2:]
    tokens = encoder(root)(broken).tokens
    found = 0
    for batch in batches:
        for row in range(SHAPE.rows):
            for number in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == number
                if here.sum() == len(tokens) and (batch["tokens"][row][here] == tokens).all():
                    found += 1
                    assert not batch["loss_mask"][row][here].any()
    assert found == 1


def test_what_no_row_can_hold_is_bad(root):
    two = Sample("web", "9", (("user", "<image><image>which?"), ("assistant", "both")), (b"one", b"two"))
    samples = [each for each in map(mixture(root).__getitem__, range(40)) if len(each.pictures) < 2] + [two]
    small = dataclasses.replace(SHAPE, tiles=1)
    said = r"sample 9 of web has \d+ tokens and 2 tiles, a row holds 512 and 1"
    with Packer(samples * 20, encoder(root), small) as packer, pytest.raises(UserError, match=said):
        next(packer)
    with Packer(samples * 20, encoder(root), small, bad="skip") as packer:
        assert next(packer)["images"].shape[1] == 1 and packer.counts["bad"] > 0


def test_a_picture_of_another_size_than_its_header_says_fails_or_is_broken(root, monkeypatch):
    monkeypatch.setattr(images, "upright_size", lambda picture: (16, 48))
    file = encoded(Image.new("RGB", (16, 16)))
    samples = [Sample("web", str(i), (("user", "<image>?"), ("assistant", "no")), (file,)) for i in range(600)]
    said = "sample 0 of web: the picture makes 1 tiles, its header said 4; save it anew"
    with Packer(samples, encoder(root, "phi3"), SHAPE) as packer, pytest.raises(UserError, match=said):
        next(packer)
    with Packer(samples, encoder(root, "phi3"), SHAPE, bad="skip") as packer:
        assert not next(packer)["loss_mask"].any() and packer.counts["bad"] > 0


def test_processes_that_would_measure_other_samples_end_the_run(root, tmp_path, monkeypatch):
    class Whole(Feed):
        def __init__(self, *_, held_out):
            self.inner = Packer(mixture(root), encoder(root, "phi3"), SHAPE)
            self.close = self.inner.close

        def __next__(self):
            return next(self.inner)

    made = evaluation.Evaluation(fixtures.run_config(evaluation=EvaluationOptions(rows=2)), tmp_path, None, None, print)
    made.__dict__["_sums"] = lambda *_: {"loss": (np.float32(6), np.float32(3))}
    monkeypatch.setattr(evaluation, "Feed", Whole)
    asked = []
    monkeypatch.setattr(hosts, "agree", lambda text: asked.append(json.loads(text)) or len(asked) == 1)
    assert made.held_out(None, None, lambda: None) == {"held_out/loss": 2.0}
    with pytest.raises(UserError, match="the processes do not read the same samples"):
        made.held_out(None, None, lambda: None)
    assert asked[0] == asked[1]


def test_processes_that_leave_out_other_samples_end_the_run(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "other")
    (tmp_path / "other/imgs/DUE_Benchmark/DocVQA/1.png").unlink()
    halves = dict(bad="skip", shares=[(0, 2), (1, 3)])
    feeds = []
    for share, here in enumerate((root, root, tmp_path / "other")):
        feeds.append(Feed.__new__(Feed))
        feeds[-1].inner = Packer(mixture(here), encoder(here, "phi3"), SHAPE, share=share % 2, **halves)
        next(feeds[-1].inner)
    of_others = None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda own: np.stack([own, of_others]))
    for other in feeds[1:]:
        of_others = np.frombuffer(hashlib.sha256(other.inner.position().encode()).digest(), np.uint8)
        if other is feeds[1]:
            assert feeds[0].metrics()["data/samples"] > 0
            continue
        with pytest.raises(UserError, match="the processes do not read the same samples: one of them leaves out what"):
            feeds[0].metrics()
    for feed in feeds:
        feed.inner.close()


def test_data_of_which_most_is_bad_ends_the_run(root, caplog):
    for broken, why in ((("user", "what?"), "turn 1 is by the assistant"), (("user", "<image>what?"), "is broken")):
        turns = (broken, ("assistant", "nothing")) if "image" in broken[1] else (("assistant", "hello"),)
        samples = [Sample("web", str(i), turns, (b"no picture",) * ("image" in broken[1])) for i in range(2000)]
        said = rf"of the latest [\d,]+ samples cannot be used, the last of them: .*{why}"
        with Packer(samples, encoder(root), SHAPE, bad="skip") as packer, pytest.raises(UserError, match=said):
            [next(packer) for _ in range(50)]
        assert len(caplog.messages) == 101
        caplog.clear()


def test_data_that_turns_bad_ends_the_run_soon(root):
    text = Sample("web", "1", (("user", "what?"), ("assistant", "a red circle")), ())
    picture = Sample("web", "2", (("user", "<image>what?"), ("assistant", "nothing")), (b"no picture",))
    asked = []

    class Samples:
        def __getitem__(self, index):
            asked.append(index)
            return text if index < 3000 else bad

    said = r"5\d\d of the latest [\d,]+ samples cannot be used"
    for bad, last in ((picture, 5500), (Sample("web", "3", (), ()), 3700)):  # noqa: B007 (Samples has it)
        with Packer(Samples(), encoder(root), SHAPE, bad="skip") as packer, pytest.raises(UserError, match=said):
            [next(packer) for _ in range(9999)]
        assert 3000 < max(asked) < last
        asked.clear()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_storage_that_is_away_is_no_bad_data(root, family, tmp_path, monkeypatch):
    """A folder of pictures that vanishes, and reads that fail for good, end a run that skips what is bad."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "1.png")
    turns = ("user", "<image>what?"), ("assistant", "a circle")
    samples = [Sample("web", str(i), turns, ("pictures/1.png",)) for i in range(3000)]

    def read(away):
        with Packer(samples, encoder(tmp_path, family), SHAPE, bad="skip", threads=1) as packer:
            next(packer)
            away()
            [next(packer) for _ in range(40)]

    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(time, "sleep", lambda _: None)
    said = r"sample \d+ of web: .*1.png cannot be read: Input/output error"
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=said):
        read(lambda: [patch.setattr(*each, fails) for each in ((Path, "read_bytes"), (images.Image, "open"))])
    with pytest.raises(StorageError, match=f"{folder} had pictures and has none now"):
        read(lambda: (folder / "1.png").unlink())
    folder.rmdir()
    with pytest.raises(UserError, match=" of the latest "):  # it was never there
        read(lambda: None)


def test_a_position_is_of_its_data(root):
    good = mixture(root)

    class Gone:
        def __getitem__(self, index):
            sample = good[index]
            gone = tuple("gone.jpg" for _ in sample.pictures)
            return dataclasses.replace(sample, pictures=sample.pictures if index % 3 else gone)

    with Packer(mixture(root), encoder(root, "phi3"), SHAPE, lengths={"mathplus": 7}) as packer:
        next(packer)
        state = packer.get_state()
        packer.set_state(state)
    said, other = "has read a mathplus of 7 samples, now it has 1,008", {"mathplus": 1008}
    with Packer(mixture(root), encoder(root), SHAPE, lengths=other) as packer, pytest.raises(UserError, match=said):
        packer.set_state(state)
    with Packer(Gone(), encoder(root, "phi3"), SHAPE) as packer, pytest.raises(UserError, match="does not exist"):
        packer.set_state(state)
    with Packer(Gone(), encoder(root, "phi3"), SHAPE, bad="skip") as packer:
        packer.set_state(state)
        next(packer)
        assert packer.counts["bad"] > 0


def options(root, **changes):
    plain = dict(max_length=256, sample_length=128, row_tiles=8, max_tiles=2, system="", bad="skip", threads=1)
    return MixtureOptions(root=str(root), **plain | changes)


def iterator(root, parts):
    sizes = dict(image_size=16, image_tokens=4, batch_size=2, seed=0)
    return train_iterator(options(root, parts=parts), tokenizer("phi3"), **sizes)


@pytest.mark.parametrize(
    "part", ["mathplus", ("mathplus",), ("mathplus", 1, 2), ("mathplus", 1, 2.5, None), ("mathplus", "1"), (1, 1)]
)
def test_parts_have_a_form(root, part):
    with pytest.raises(UserError, match=r"data\.parts: .* is no part of a mixture; write \(name, repeat\)"):
        iterator(root, (part,))


def test_parts_may_have_caps_and_weights(root):
    with iterator(root, (("mathinstruct", 1, 2, 0.25), ("mathplus", 1.0, None, 0.75))) as packer:
        places = {packer.samples.place(index) for index in range(len(packer.samples))}
        assert packer.samples.counts["mathplus"] == pytest.approx(3 * packer.samples.counts["mathinstruct"], abs=3)
    assert len({row for name, row in places if name == "mathinstruct"}) <= 2


@pytest.mark.slow
def test_a_run_trains_on_the_mixture_and_goes_on(root, tmp_path):
    data = options(root, parts=(("sharegpt4v_instruct", 1), ("mathinstruct", 2.0), ("gllava_qa", 1)))
    with fixtures.nano_variants():
        base = fixtures.save_run(tmp_path / "base", steps=1)
        config = fixtures.run_config(
            data=data, start_from=str(base), steps=3, checkpoint_every=2, mesh="data=1,fsdp=-1", rules="fsdp"
        )
        train(config, tmp_path / "run")
        shutil.rmtree(tmp_path / "run/checkpoints/3")
        before = (tmp_path / "run/metrics.jsonl").read_text()
        train(config, tmp_path / "run")
        assert config_lib.from_dict(typed.to_dict(config)) == config
        with pytest.raises(UserError, match=r"config\.start_from must name a checkpoint that has a tokeniser"):
            config_lib.check(dataclasses.replace(config, start_from=""))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    firsts = [json.loads(line) for line in before.splitlines()]
    for line in (*lines, *firsts):
        del line["examples_per_second"], line["data/waited"]
    assert lines == firsts
    shares = [lines[-1][f"data/{name}"] for name, _ in data.parts]
    assert sum(shares) == pytest.approx(1, abs=1e-4) and min(shares) > 0 and lines[-1]["data/padding"] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_of_a_packed_row_is_the_sum_of_its_samples(family):
    """Lengths on both sides of where rotary factors change; two pictures, then none, then one."""
    module, params = tiny.model(family)
    rope = module.config.decoder.rope
    name = "original_max_positions" if family == "phi3" else "max_positions"
    rope = dataclasses.replace(rope, **{name: 16})
    decoder = dataclasses.replace(module.config.decoder, rope=rope)
    module = dataclasses.replace(module, config=dataclasses.replace(module.config, decoder=decoder))
    rng = np.random.default_rng(0)
    samples = []
    for pictures, text in ((2, 14), (0, 9), (1, 5)):
        tokens = [module.config.image_token] * module.config.image_tokens * pictures + rng.integers(
            4, tiny.VOCAB, text
        ).tolist()
        mask = [False] * (len(tokens) - 4) + [True] * 4
        samples.append((tokens, mask, rng.standard_normal((pictures, 16, 16, 3)).astype(np.float32)))

    @jax.jit
    def sums(tokens, positions, segment_ids, mask, images):
        run = lambda p: module.apply({"params": p}, tokens, images, segment_ids=segment_ids, positions=positions)[0]  # noqa: E731
        loss = lambda p: next_token_loss(run(p), p["decoder"]["head"]["kernel"], tokens, mask)[0]  # noqa: E731
        return jax.value_and_grad(loss)(params)

    def padded(chosen, length=80, tiles=4):
        tokens = np.zeros((1, length), np.int32)
        positions, segment_ids, mask = np.zeros_like(tokens), np.zeros_like(tokens), np.zeros((1, length), bool)
        images, place, picture = np.zeros((1, tiles, 16, 16, 3), np.float32), 0, 0
        for number, (each, learned, pictures) in enumerate(chosen, start=1):
            here = slice(place, place + len(each))
            tokens[0, here], mask[0, here] = each, learned
            positions[0, here], segment_ids[0, here] = np.arange(len(each)), number
            images[0, picture : picture + len(pictures)] = pictures
            place, picture = here.stop, picture + len(pictures)
        return sums(tokens, positions, segment_ids, mask, images)

    whole, gradient = padded(samples)
    parts, gradients = zip(*(padded([each]) for each in samples), strict=True)
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)
    total = jax.tree.map(lambda *each: sum(each), *gradients)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(float(jnp.abs(b).max()), 1e-3))
