"""A run that trained some parameters, and its base, as one checkpoint."""

import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import fixtures
from trol_jax import checkpoint, manifest, saved
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer, Question
from trol_jax.models import kernels
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.ops.linear import merged
from trol_jax.train.merge import merge

QUANTISED = "decoder/layers/block/up/kernel"
TABLE = (
    (r"projector/.*|decoder/gate_.*", "train"),
    (r"decoder/layers/block/(qkv|out)/kernel", "lora nf4"),
    (QUANTISED, "int8"),
    (".*", "freeze"),
)


@pytest.fixture(params=["internlm2", "phi3"])
def run(request, tmp_path):
    """A base, and a run from it whose trained parameters are random. Returns (run, parameters of its model)."""
    with fixtures.nano_variants():
        yield fixtures.save_adapted(tmp_path, request.param, TABLE)


def test_the_whole_is_what_was_trained_over_what_was_frozen(run, tmp_path):
    path, params = run
    step_dir = merge(path, tmp_path / "whole")
    assert step_dir.name == "3" and saved.read(step_dir).base is None
    shapes = nn.unbox(abstract_params(TroL(saved.read(step_dir).model)))
    whole = flatten_dict(checkpoint.restore_params(step_dir, shapes), sep="/")
    is_leaf = lambda _, leaf: not isinstance(leaf, dict)  # noqa: E731
    for name, leaf in flatten_dict(params, sep="/", is_leaf=is_leaf).items():
        inputs = kernels.inputs(name)
        expected = jax.vmap(lambda each, n=inputs: merged(each, n))(leaf) if inputs else leaf
        if name == QUANTISED:  # and not trained
            base = checkpoint.resolve(tmp_path / "base")
            expected = checkpoint.open_array(base, checkpoint.PARAMS + name).read().result()
        np.testing.assert_allclose(whole[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)
    question = Question("what color is it?", [np.zeros((16, 16, 3), np.uint8)])
    assert isinstance("".join(Answerer.load(step_dir).reply(question, 3)), str)


def test_parts_are_not_taken_for_a_model(run, tmp_path):
    path, _ = run
    with pytest.raises(UserError, match=r"has only what was trained; .* -m launch.merge --checkpoint="):
        Answerer.load(path)
    merge(path, tmp_path / "whole")
    with pytest.raises(UserError, match="is there already; name a folder that is new or empty"):
        merge(path, tmp_path / "whole")
    with pytest.raises(UserError, match="is whole already"):
        merge(tmp_path / "whole", tmp_path / "other")


def test_a_base_that_is_gone_or_another_is_told(run, tmp_path):
    path, _ = run
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(UserError, match="no checkpoint at "):
        merge(path, tmp_path / "whole")
    with pytest.raises(UserError, match=r"is step 3.*the run began with step 1"):
        merge(path, tmp_path / "whole", base=path)
    assert not (tmp_path / "whole").exists()
    assert manifest.read(merge(path, tmp_path / "whole", base=tmp_path / "moved"))["step"] == 3


@pytest.mark.parametrize("damaged", ["run", "base"])
def test_nothing_is_made_of_what_is_damaged(run, tmp_path, damaged):
    path, _ = run
    fixtures.flip_bytes(step_dir := checkpoint.resolve(tmp_path / damaged))
    with pytest.raises(UserError, match=f"checkpoint {step_dir} is damaged: state/"):
        merge(path, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
