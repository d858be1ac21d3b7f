"""Speed of answering with random weights of a size, against what the machine itself can do, measured in the same run.

    python -m launch.bench infer [--variant=trol_1_8b] [--layers=4] [--dtype=float32] [--batch=1,8,64] [--weights=int8]

Ceilings: the largest rate of products of square matrices, for prompts; reading all weights that a token needs, by a
product of each with a vector, for answers.
"""

import dataclasses
import functools
import re
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict

from trol_jax.infer import weights
from trol_jax.infer.decoding import GREEDY, sampling
from trol_jax.infer.engine import Engine, padded
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import ModelConfig, get_variant
from trol_jax.ops.linear import product

VARIANT = flags.DEFINE_string("variant", "trol_1_8b", "Size of the model.")
LAYERS = flags.DEFINE_integer("layers", 0, "Layers of the decoder and of the tower at most; 0 = all.", lower_bound=0)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What is computed in.")
KIND = flags.DEFINE_enum("weights", None, weights.KINDS, "Weights on the device; by default as computed in.")
CACHE = flags.DEFINE_enum("cache", None, ["float32", "bfloat16", "int8"], "Cache; by default as computed in.")
BATCH = flags.DEFINE_list("batch", ["1"], "Answers side by side.")
COUNTS = (lambda given: given and all(each.isdecimal() and int(each) for each in given)), "give it as 1,8"
flags.register_validator("batch", *COUNTS)
WORDS = flags.DEFINE_integer("words", 64, "Tokens of the prompt beside those of one picture.", lower_bound=1)
CHUNK = flags.DEFINE_integer("chunk", 8, "Tokens decoded between two looks.", lower_bound=1)
REPEAT = flags.DEFINE_integer("repeat", 5, "Measurements of each, of which the median counts.", lower_bound=1)


def run() -> None:
    config = cut(get_variant(VARIANT.value), LAYERS.value)
    dtype = jnp.dtype(DTYPE.value)
    kind = KIND.value or DTYPE.value
    model = TroL(config, dtype, separate=True)
    params = random_params(model, kind)
    c = config.decoder
    print(f"{config.name}, {c.layers} layers, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"weights {kind}, {weights.size(params) / 1e9:.2f} GB; computed in {dtype}, cache {CACHE.value or dtype}")

    matrix = matrix_rate(dtype)
    kernels = decoded(params)
    read = weights.size(kernels)
    streaming = read / seconds(functools.partial(stream, kernels, dtype)) / 1e9
    print(f"ceilings: {matrix / 1e12:.3f} TFLOP/s of products, {streaming:.1f} GB/s of weights read by products")
    print(
        f"{'batch':>5} {'prompt':>8} {'TFLOP/s':>8} {'of it':>6} {'token':>9} {'tokens/s':>9} {'GB/s':>7} {'of it':>6}"
    )
    for batch in map(int, BATCH.value):
        prompt, token = measure(model, params, batch)
        flops = batch * prompt_flops(config, WORDS.value + config.image_tokens)
        rate = read / token / 1e9
        print(
            f"{batch:>5} {prompt:>7.3f}s {flops / prompt / 1e12:>8.3f} {flops / prompt / matrix:>6.1%} "
            f"{token * 1e3:>7.2f}ms {batch / token:>9.1f} {rate:>7.1f} {rate / streaming:>6.1%}",
            flush=True,
        )


def cut(config: ModelConfig, layers: int) -> ModelConfig:
    """The same with fewer layers."""
    if not layers:
        return config
    fewer = [dataclasses.replace(part, layers=min(part.layers, layers)) for part in (config.vision, config.decoder)]
    return dataclasses.replace(config, vision=fewer[0], decoder=fewer[1])


def random_params(model: TroL, kind: str) -> dict:
    """Of each layer its own, an array at a time, so that no second copy is ever held."""
    shapes = nn.unbox(abstract_params(dataclasses.replace(model, separate=False)))
    shapes = flatten_dict(jax.eval_shape(unstack_layers, shapes), sep="/")
    made = {}
    for i, (name, leaf) in enumerate(shapes.items()):
        value = jax.jit(lambda key, leaf=leaf: 0.02 * jax.random.normal(key, leaf.shape))(jax.random.key(i))
        made[name] = jax.block_until_ready(weights.maker(re.sub(r"layers_\d+", "layers", name), kind)(value))
    return unflatten_dict(made, sep="/")


def measure(model: TroL, params, batch: int) -> tuple[float, float]:
    """Seconds of `batch` prompts of a picture and words, run together, and of one token of each answer."""
    config = model.config
    length, side = WORDS.value + config.image_tokens, config.vision.image_size
    engine = Engine(model, params, (), batch, chunk=CHUNK.value, cache=CACHE.value and jnp.dtype(CACHE.value))
    tokens = np.full((batch, padded(length)), -1, np.int32)
    tokens[:, :length] = [config.image_token] * config.image_tokens + [7] * WORDS.value
    tiles = np.zeros((batch, 1, side, side, 3), np.uint8)
    prompt = seconds(lambda: engine.prompt(tokens, tiles))

    *prompts, _ = engine.prompt(tokens, tiles)
    slots = engine.fit(engine.start(), length + CHUNK.value * (REPEAT.value + 2))
    slots = engine.admit(slots, range(batch), prompts, [1 << 30] * batch, sampling([GREEDY] * batch))

    def decode():
        nonlocal slots
        slots, said = engine.decode(slots)
        return said

    return prompt, seconds(decode) / CHUNK.value


def seconds(job: Callable[[], object]) -> float:
    """The median, compiling apart."""
    taken = []
    for _ in range(REPEAT.value + 1):
        start = time.perf_counter()
        jax.block_until_ready(job())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def matrix_rate(dtype) -> float:
    """FLOP/s of the product of two square matrices, the best of several sizes."""
    sizes = (2048, 4096) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    multiply = jax.jit(jnp.matmul)
    squares = (jnp.ones((n, n), dtype) for n in sizes)
    return max(2 * len(a) ** 3 / seconds(functools.partial(multiply, a, a)) for a in squares)


def decoded(params) -> dict:
    """The matrices that a generated token is multiplied with, by name."""
    leaves = flatten_dict(params["decoder"], sep="/")
    return {name: leaf for name, leaf in leaves.items() if name.endswith("kernel") and name != "gate_kernel"}


@functools.partial(jax.jit, static_argnames="dtype")
def stream(kernels, dtype) -> jax.Array:
    """Each of them once times a vector, one after the other."""
    total = jnp.zeros((), dtype)
    for name, kernel in kernels.items():
        inputs = 2 if name.endswith("out/kernel") else 1
        shape = jax.tree.leaves(kernel)[0].shape
        total += product(jnp.full((1, *shape[:inputs]), total + 1, dtype), kernel, inputs).sum()
    return total


def prompt_flops(config: ModelConfig, tokens: int) -> float:
    """Of a prompt with one picture: products with weights, and attention to what a token may see. The low-rank pairs
    count for image tokens alone.
    """
    c, v = config.decoder, config.vision
    d, q, kv = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    maps = [(d, q + 2 * kv), (q, d), (d, c.hidden), (d, c.hidden), (c.hidden, d)]
    dense = sum(i * o for i, o in maps) * tokens + c.lora_rank * sum(i + o for i, o in maps) * config.image_tokens
    layer = 2 * dense + 2 * q * tokens**2  # q k and p v, each over half of the square
    tower = 2 * (4 * v.width**2 + 2 * v.width * v.hidden) * v.patches + 4 * v.width * v.patches**2
    wide = v.width * config.shuffle**2
    projector = 2 * (wide * d + d * d) * config.image_tokens
    return config.passes * c.layers * layer + v.layers * tower + projector + 2 * d * c.vocab
