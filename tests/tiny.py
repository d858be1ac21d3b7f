"""Models small enough to compile in a second or two, for tests of properties."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from trol_jax.models import variants
from trol_jax.models.trol import TroL, abstract_params

FAMILIES = ("internlm2", "phi3")
VOCAB = 40


def config(family: str, **changes) -> variants.ModelConfig:
    """Two layers of width 32 over 16-pixel pictures (4 patches)."""
    base = variants.get_variant(f"tiny_{family}")
    vision = dataclasses.replace(base.vision, image_size=16, patch_size=4, width=32, hidden=32, layers=1, heads=2)
    decoder = dataclasses.replace(
        base.decoder, vocab=VOCAB, width=32, hidden=48, layers=2, heads=4, kv_heads=2, lora_dropout=0.0
    )
    rope = decoder.rope
    if family == "phi3":
        rope = dataclasses.replace(rope, short=(1.0,) * 4, long=(2.0,) * 4)
    base = dataclasses.replace(
        base,
        vision=vision,
        decoder=dataclasses.replace(decoder, rope=rope),
        image_token=VOCAB if family == "internlm2" else 3,
    )
    return dataclasses.replace(base, **changes)


def draw(module: TroL, seed: int = 0) -> dict:
    """Random parameters, drawn by NumPy: no compilation, and nothing is zero or one as in a fresh model."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray((0.2 * rng.standard_normal(x.shape)).astype(x.dtype)), _shapes(module))


@functools.cache
def _shapes(module: TroL) -> dict:
    return nn.unbox(abstract_params(module))


@functools.cache
def model(family: str, **changes) -> tuple[TroL, dict]:
    options = {k: changes.pop(k) for k in ("dtype", "scan", "remat") if k in changes}
    module = TroL(config(family, **changes), **options)
    return module, draw(module)


def tokens(batch: int, length: int, seed: int = 0) -> jax.Array:
    """Text tokens, none of them the image token."""
    return jax.random.randint(jax.random.key(seed), (batch, length), 4, VOCAB)


def images(batch: int, count: int = 1, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, count, 16, 16, 3))


def with_picture(module: TroL, text: jax.Array) -> jax.Array:
    """The tokens of one picture, then the text: [B, P + T]."""
    picture = jnp.full((len(text), module.config.image_tokens), module.config.image_token)
    return jnp.concatenate([picture, text], axis=1)


def separate(module: TroL) -> TroL:
    """The same model over the parameters that `unstack_layers` makes."""
    return dataclasses.replace(module, separate=True)
