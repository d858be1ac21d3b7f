"""Generation against the original's."""

import jax.numpy as jnp
import numpy as np
import pytest

import golden
from test_parity import model, pictures
from trol_jax.infer.greedy import generate

CASES = ("image0", "image1", "text0", "text1")


@pytest.mark.parametrize("family", golden.FAMILIES)
def test_greedy_tokens_equal_the_original(family):
    """Four prompts, recorded one by one, answered in one batch with padding on the left."""
    module, params = model(family)
    z = golden.outputs(family)
    prompts = [z[f"gen_{case}.beams1.prompt"][0] for case in CASES]
    length = max(map(len, prompts))
    tokens = np.stack([np.pad(p, (length - len(p), 0)) for p in prompts]).astype(np.int32)
    real = np.stack([np.pad(np.ones_like(p), (length - len(p), 0)) for p in prompts]).astype(np.int32)
    images = jnp.concatenate([pictures(family, 2)] * 2)  # the rows of text have no image token to put one at
    answers, out = generate(module, params, tokens, real, images, max_new_tokens=20, stop=(2,))
    for case, answer in zip(CASES, answers, strict=True):
        expected = z[f"gen_{case}.beams1.tokens"][0]
        np.testing.assert_array_equal(answer[: len(expected)], expected, err_msg=case)
        assert (answer[len(expected) :] == -1).all()
    assert out["gate"].shape == (module.config.decoder.layers, 1, 4, length)
