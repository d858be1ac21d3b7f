"""The converted checkpoints compute what the original computed from them, and what differs is named."""

import collections

import numpy as np
import pytest

import golden
from convert import check, engine

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
    """Every output, but for beam search and what only leads from one recorded array to the next."""
    family, rows = compared
    ends = (".input_ids", ".attention_mask", ".labels", ".prompt")
    inputs = {"images_uint8", "clip.orig_position_embedding", *(["pixel_values"] if family == "phi3" else [])}
    outputs = {
        name for name in golden.outputs(family) if not name.endswith(ends) and ".beams5." not in name
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
    recorded = golden.outputs("phi3")
    names = {name for name in recorded if name.startswith("text_single")}
    rows = list(check._Check(engine.Source.open(folder), recorded, names).rows())
    failed = [row for row in rows if not row.passed]
    assert failed and min(row.layer for row in failed if row.layer is not None) == 1
    assert "the first layer that differs: 1 (text_single.hidden.2)" in check.table(rows)
