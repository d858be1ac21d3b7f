"""The released sizes, for free: under eval_shape no array is made."""

import dataclasses
import math

import flax.linen as nn
import jax
import pytest

from trol_jax.errors import UserError
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import VARIANTS, get_variant, with_tokenizer
from trol_jax.sharding.rules import RULES, Layout

COUNTS = {"trol_1_8b": 2_451_237_888, "trol_3_8b": 4_147_126_272, "trol_7b": 8_666_844_160}
GATES = {"trol_1_8b": (2_049, 49_176), "trol_3_8b": (3_073, 98_336), "trol_7b": (4_097, 131_104)}


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("shared_gate", [True, False])
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_released_checkpoints(name, shared_gate):
    config = dataclasses.replace(get_variant(name), shared_gate=shared_gate)
    params = nn.unbox(abstract_params(TroL(config)))
    gate = count([params["decoder"].pop(f"gate_{part}") for part in ("kernel", "bias")])
    assert count(params) == COUNTS[name]
    assert gate == GATES[name][0 if shared_gate else 1]


def test_image_tokens_are_those_of_the_original():
    assert {name: VARIANTS[name].image_tokens for name in COUNTS} == {
        "trol_1_8b": 1225, "trol_3_8b": 256, "trol_7b": 1225,
    }  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_a_rule(name):
    boxed = abstract_params(TroL(VARIANTS[name]))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    assert all(isinstance(leaf, nn.Partitioned) and len(leaf.names) == len(leaf.value.shape) for leaf in leaves)
    for rules in RULES:
        layout = Layout.make("sequence=2,tensor=4" if rules == "sequence" else "data=-1", rules)
        assert jax.tree.structure(layout.shardings(boxed)) == jax.tree.structure(nn.unbox(boxed))


def test_unknown_names_and_impossible_tokenisers_are_refused():
    with pytest.raises(UserError, match="choose one of trol_1_8b"):
        get_variant("trol_2b")
    with pytest.raises(UserError, match="image token 41 has no embedding row"):
        with_tokenizer(get_variant("tiny_internlm2"), vocab=40, image_token=41)
