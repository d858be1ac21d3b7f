"""Against the recorded outputs of the original PyTorch implementation, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL
from trol_jax.ops.image import grow_position_table, normalize
from trol_jax.ops.losses import next_token_loss

SIMPLE, COMPOSITE = 1e-5, 1e-4


def close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


@functools.cache
def model(family, **how):
    config, params = golden.load(family)
    return TroL(config, **how), params


def pictures(family, rows):
    """Normalised pictures [B, M, height, width, C] of the recorded rows (phi3: tiles 0-1, then 2-4)."""
    pixels = golden.outputs(family)["pixel_values"].transpose(0, 2, 3, 1)
    if family == "internlm2":
        return jnp.asarray(pixels[:rows, None])
    tiles = np.zeros((2, 3, *pixels.shape[1:]), np.float32)
    tiles[0, :2], tiles[1] = pixels[:2], pixels[2:]
    return jnp.asarray(tiles[:rows])


def test_position_table_grows_as_in_torch():
    z = golden.outputs("internlm2")
    close(grow_position_table(z["clip.orig_position_embedding"], 6), z["resized_position_embedding"], SIMPLE)


@pytest.mark.parametrize("family", golden.FAMILIES)
def test_vision(family):
    module, params = model(family)
    z = golden.outputs(family)
    pixels = jnp.asarray(z["pixel_values"].transpose(0, 2, 3, 1))
    if family == "internlm2":
        uint8 = jnp.asarray(z["images_uint8"].transpose(0, 2, 3, 1))
        close(normalize(uint8, module.config.vision.mean, module.config.vision.std), pixels, SIMPLE)
    projected = module.apply({"params": params}, pixels, method="encode_images")
    close(projected, z["projected"], COMPOSITE)


@functools.cache
def forward(family, separate):
    """One compiled function for all prompts of a family: two rows, padded on the left to the longest of them."""
    module, params = model(family, separate=separate)
    params = unstack_layers(params) if separate else params

    @jax.jit
    def run(tokens, images, segment_ids):
        x, out = module.apply({"params": params}, tokens, images, segment_ids=segment_ids)
        return x, out["kv"], module.apply({"params": params}, x, method="logits")

    longest = max(v.shape[1] for k, v in golden.outputs(family).items() if k.endswith(".input_ids"))
    return run, longest


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    ("family", "case"),
    [(f, c) for f in golden.FAMILIES for c in ("image_batch", "image_single", "text_batch", "text_single")]
    + [("phi3", "text_long")],
)
def test_prompt(family, case, separate):
    z = golden.outputs(family)
    run, longest = forward(family, separate)
    tokens, attended = z[f"{case}.input_ids"], z[f"{case}.attention_mask"] == 1
    rows, length = tokens.shape
    pad = ((0, 2 - rows), (longest - length, 0))
    x, kv, logits = run(
        np.pad(tokens, pad).astype(np.int32), pictures(family, 2), np.pad(attended, pad).astype(np.int32)
    )
    mine = lambda a: np.asarray(a)[:rows, longest - length :][attended]  # noqa: E731
    layers = model(family)[0].config.decoder.layers
    close(mine(x), z[f"{case}.hidden.{layers}"][attended], COMPOSITE)
    close(mine(logits), z[f"{case}.logits"][attended], COMPOSITE)
    for name, by_layer in zip("kv", kv, strict=True):
        for i in range(layers):
            close(mine(by_layer[i]), z[f"{case}.{name}.{i}"].swapaxes(1, 2)[attended], COMPOSITE)


@pytest.mark.parametrize("family", golden.FAMILIES)
def test_loss_and_gradients(family):
    module, params = model(family)
    z = golden.outputs(family)
    tokens, labels = jnp.asarray(z["train.input_ids"], jnp.int32), z["train.labels"]
    attended = jnp.asarray(z["train.attention_mask"], jnp.int32)

    def loss_fn(params):
        x, _ = module.apply({"params": params}, tokens, pictures(family, len(tokens)), segment_ids=attended)
        mask = jnp.asarray((labels != -100) & (attended == 1))
        total, count, _ = next_token_loss(x, params["decoder"]["head"]["kernel"], tokens, mask, chunk=16)
        return total / count

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    close(loss, z["train.loss"], SIMPLE)
    prefix = "train.grad."
    recorded = {k.removeprefix(prefix): v for k, v in z.items() if k.startswith(prefix)}
    gate = [k for k in recorded if "trol_gating" in k]
    recorded |= {k.rsplit(".")[-1]: recorded.pop(k) for k in gate}
    expected = golden.to_tree(family, module.config, recorded)
    assert len(jax.tree.leaves(expected)) > 10
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        mine = functools.reduce(lambda node, key: node[key.key], path, grads)
        np.testing.assert_allclose(mine, value, atol=COMPOSITE, rtol=1e-3, err_msg=jax.tree_util.keystr(path))
