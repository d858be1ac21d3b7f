"""A run that trained some parameters, and its base, as one checkpoint."""

import dataclasses
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import fixtures
from trol_jax import checkpoint, manifest, saved, typed
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer, Question
from trol_jax.models import kernels
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.ops.linear import merged
from trol_jax.train import parameters
from trol_jax.train.merge import merge
from trol_jax.train.parameters import LoraOptions

TABLE = (
    (r"projector/.*|decoder/gate_.*", "train"),
    (r"decoder/layers/block/(qkv|out)/kernel", "lora nf4"),
    (r"decoder/layers/block/up/kernel", "int8"),
    (".*", "freeze"),
)


@pytest.fixture(params=["internlm2", "phi3"])
def run(request, tmp_path):
    """A base, and a run from it whose trained parameters are random. Returns (run, parameters of its model)."""
    with fixtures.nano_variants():
        base = checkpoint.resolve(fixtures.save_run(tmp_path / "base", request.param))
        settings = dict(start_from=str(base), parameters=TABLE, lora=LoraOptions(rank=2, alpha=4.0))
        config = fixtures.run_config(request.param, **settings)
        here = dataclasses.replace(saved.read(base), settings=config, base=saved.Base.of(base))
        shapes = flatten_dict(nn.unbox(abstract_params(TroL(here.model))), sep="/")
        found = parameters.treatments(TABLE, list(shapes))
        parts = lambda: parameters.split(  # noqa: E731
            jax.tree.map(jnp.asarray, checkpoint.restore_params(base, nn.unbox(abstract_params(TroL(here.model))))),
            found, config.lora, jnp.float32, jax.random.key(0),
        )  # fmt: skip
        trained, frozen = parts()
        rng = np.random.default_rng(0)
        trained = {
            name: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32) for name, leaf in trained.items()
        }
        with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            options = dict(data_state=None, config=typed.to_dict(config), files=here.files())
            checkpoints.save(3, {"params": trained}, **options)
        yield tmp_path / "run", parameters.joiner(config.lora)(trained, frozen)


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
        np.testing.assert_allclose(whole[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)
    question = Question("what color is it?", [np.zeros((16, 16, 3), np.uint8)])
    assert isinstance("".join(Answerer.load(step_dir).reply(question, 3)), str)


def test_parts_are_not_taken_for_a_model(run, tmp_path):
    path, _ = run
    with pytest.raises(UserError, match=r"has only what was trained; .* -m launch.merge --checkpoint="):
        Answerer.load(path)
    merge(path, tmp_path / "whole")
    with pytest.raises(UserError, match="holds checkpoints already"):
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
