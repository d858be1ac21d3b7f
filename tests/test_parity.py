"""The converted checkpoints compute what the original computed from them, and what differs is named."""

import collections

import numpy as np
import pytest

import golden
from convert import check, engine
from trol_jax.errors import UserError

PROMPTS = {"image_batch", "image_single", "text_batch", "text_single"}


@pytest.fixture(scope="module", params=golden.FAMILIES)
def compared(request):
    folder = golden.ROOT / request.param
    return request.param, check.check(folder, folder / "golden.npz")


def test_everything_that_was_recorded_agrees(compared):
    _, rows = compared
    assert [row for row in rows if not row.passed] == []
    assert {row.tolerance for row in rows} == {0.0, check.SIMPLE, check.COMPOSITE}


def test_nothing_that_was_recorded_is_left_out(compared):
    """Every output, but for what only leads from one recorded array to the next."""
    family, rows = compared
    ends = (".input_ids", ".attention_mask", ".labels", ".prompt")
    inputs = {"images_uint8", "clip.orig_position_embedding", *(["pixel_values"] if family == "phi3" else [])}
    outputs = {
        name for name in golden.outputs(family) if not name.endswith((*ends, ".beams1.score"))
    } - inputs  # fmt: skip
    assert {row.what for row in rows} == outputs
    counts = collections.Counter(row.what.split(".")[0] for row in rows)
    assert counts.keys() >= PROMPTS | ({"text_long"} if family == "phi3" else set())
    assert counts["train"] > 25 and all(counts[prompt] == 11 for prompt in PROMPTS)


def test_the_table_says_so(compared):
    _, rows = compared
    text = check.table(rows)
    assert f"{len(rows)} of {len(rows)} arrays agree" in text and "DIFFERS" not in text


def test_the_first_layer_that_differs_is_named(monkeypatch):
    """One weight of layer 1 changed by a tenth; only the prompts are compared."""
    folder, load = golden.ROOT / "phi3", engine.files.Stored.load

    def changed(stored):
        array = np.array(load(stored))
        if stored == engine.files.read_tensors(folder)["language_model.model.layers.1.mlp.down_proj.weight"]:
            array[0, 0] += 0.1
        return array

    monkeypatch.setattr(engine.files.Stored, "load", changed)
    recorded = {k: v for k, v in golden.outputs("phi3").items() if k.startswith("text_single")}
    rows = list(check._Check(engine.Source.open(folder), recorded).rows())
    failed = [row for row in rows if not row.passed]
    assert failed and min(row.layer for row in failed if row.layer is not None) == 1
    assert "the first layer that differs: 1 (text_single.hidden.2)" in check.table(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_single.attention_mask": None}, "lacks text_single.attention_mask"),
        (
            {"text_single.logits": np.zeros((1, 2, 3))},
            "text_single.logits is (1, 2, 3) in the recording, and (1, 18, 173)",
        ),
        ({"image_single.input_ids": np.full((1, 8), 170)}, "lacks image_single.attention_mask"),
        ({"text_single.input_ids": np.array("words")}, "does not hold arrays as described"),
    ],
)
def test_a_recording_that_cannot_be_compared_is_named(tmp_path, change, message):
    names = ("text_single.input_ids", "text_single.attention_mask", "text_single.logits")
    recorded = {name: golden.outputs("phi3")[name] for name in names} | change
    np.savez(tmp_path / "some.npz", **{name: array for name, array in recorded.items() if array is not None})
    with pytest.raises(UserError) as caught:
        check.check(golden.ROOT / "phi3", tmp_path / "some.npz")
    assert message in str(caught.value)


def test_outputs_that_the_model_does_not_have_differ(tmp_path):
    recorded = {name: array for name, array in golden.outputs("phi3").items() if name.startswith("vision_features")}
    np.savez(tmp_path / "some.npz", **recorded, **{"train.grad.typo": np.zeros(1), "text.hidden.99": np.zeros(1)})
    rows = check.check(golden.ROOT / "phi3", tmp_path / "some.npz")
    assert [row.what for row in rows if not row.passed] == [
        f"{name} (not of this model, or recorded without its inputs)"
        for name in ("text.hidden.99", "train.grad.typo", "vision_features")
    ]  # fmt: skip
