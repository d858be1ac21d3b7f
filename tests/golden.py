"""Recorded outputs of the original PyTorch implementation on two tiny random checkpoints (tests/data/golden)."""

import functools
import pathlib

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from convert.engine import Source

ROOT = pathlib.Path(__file__).parent / "data" / "golden"
FAMILIES = ("internlm2", "phi3")


@functools.cache
def outputs(family):
    return dict(np.load(ROOT / family / "golden.npz"))


@functools.cache
def load(family):
    """(ModelConfig, parameters) of the checkpoint."""
    source = Source.open(ROOT / family)
    arrays = source.arrays(None, lambda done, total: None)
    return source.config, unflatten_dict({path: jnp.asarray(a.make()) for path, a in arrays.items()}, sep="/")
