"""Generation against the original's, and against the model run without a cache."""

import jax.numpy as jnp
import numpy as np
import pytest

import golden
from test_parity import model, pictures
from trol_jax.infer.greedy import generate


@pytest.mark.parametrize("family", golden.FAMILIES)
@pytest.mark.parametrize("case", ["image0", "image1", "text0", "text1"])
def test_greedy_tokens_equal_the_original(family, case):
    module, params = model(family)
    z = golden.outputs(family)
    prompt, expected = z[f"gen_{case}.beams1.prompt"], z[f"gen_{case}.beams1.tokens"][0]
    images = pictures(family, 2)[int(case[-1])][None] if "image" in case else None
    tokens = jnp.asarray(prompt, jnp.int32)
    answers, _ = generate(module, params, tokens, jnp.ones_like(tokens), images, max_new_tokens=20, stop=(2,))
    np.testing.assert_array_equal(answers[0][: len(expected)], expected)
    assert (answers[0][len(expected) :] == -1).all()
