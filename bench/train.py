"""Speed of training steps with random weights, against what the machine itself can do, measured in the same run.

    python -m launch.bench train --config=configs/trol_1_8b.py:step1 [--layers=2 --rows=1 --length=1300 --pictures=1]
    python -m launch.bench train --config=configs/quickstart.py --pipeline

The config says what is trained and how (`--config.KEY=VALUE` as in launch.train); it needs no checkpoint and, but for
--pipeline, no data. FLOPs are those that the step asks for: forward, backward as far as what is trained needs it, both
passes of every layer; not what is computed again to save memory. Attention counts whole squares.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from bench import infer
from trol_jax import checkpoint, saved
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.data.pipeline import DataOptions
from trol_jax.data.prompts import FORMATS
from trol_jax.data.tokenizer import Tokenizer, train_tokenizer
from trol_jax.models.variants import ModelConfig, get_variant
from trol_jax.sharding import cost
from trol_jax.sharding.rules import Layout
from trol_jax.train import config as config_lib
from trol_jax.train import parameters
from trol_jax.train.feed import Feed
from trol_jax.train.program import Program

CONFIG = config_flags.DEFINE_config_file("config", "configs/trol_1_8b.py:step1", "As of launch.train.")
ROWS = flags.DEFINE_integer("rows", 0, "Rows a step; by default the config's.", lower_bound=0)
LENGTH = flags.DEFINE_integer("length", 0, "Tokens a row; by default the config's.", lower_bound=0)
PICTURES = flags.DEFINE_integer("pictures", 1, "Pictures (or tiles) a row.", lower_bound=1)
PIPELINE = flags.DEFINE_bool("pipeline", False, "Also the data alone, which must be there.")


def run() -> None:
    config = settings()
    sizes, tokenizer = sizes_of(config)
    program = Program(config, sizes, Layout.make(config.mesh, config.rules))
    print(f"{sizes.name}, {sizes.decoder.layers} layers, {jax.device_count()} x {jax.devices()[0].device_kind}, "
          f"jax {jax.__version__}, {config.dtype}, remat {config.remat}")  # fmt: skip
    print(parameters.report(config.parameters, program.shapes, config.lora))
    length = LENGTH.value or config.data.max_length
    batch = jax.device_put(rows(program, config.batch_size, length), program.over_devices)
    frozen = random_frozen(program)
    state = program.fresh()

    began = time.perf_counter()
    memory = program.step.lower(state, frozen, batch).compile().memory_analysis()
    compiled = time.perf_counter() - began
    state, _ = jax.block_until_ready(program.step(state, frozen, batch))
    ceilings, taken = [infer.matrix_rate(program.dtype)], []
    for _ in range(infer.REPEAT.value):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(program.step(state, frozen, batch))
        taken.append(time.perf_counter() - began)
        ceilings.append(infer.matrix_rate(program.dtype))
    median = float(np.median(taken))
    ceilings = np.convolve(ceilings, (0.5, 0.5), "valid") * jax.device_count()  # before and after each step
    flops = asked_flops(program, batch, length)
    shares = flops / np.array(taken) / ceilings
    peak = cost.peak_bytes(memory) / 2**30
    print(f"compiled in {compiled:.1f} s; by the compiler {peak:.2f} GiB on a device")
    rate = config.batch_size / median
    print(f"{median:.3f} s a step of {config.batch_size} rows of {length} tokens: {rate:.2f} rows/s, "
          f"{rate * length:,.0f} tokens/s")  # fmt: skip
    print(f"{flops / 1e12:.3f} TFLOP a step, {flops / median / 1e12:.3f} TFLOP/s: {np.median(shares):.1%} "
          f"({shares.min():.1%} to {shares.max():.1%}) of the ceiling around each step, products of square matrices at "
          f"{ceilings.min() / 1e12:.3f} to {ceilings.max() / 1e12:.3f} TFLOP/s")  # fmt: skip
    if PIPELINE.value:
        alone = pipeline_rate(program, tokenizer)
        print(f"data alone: {alone:,.0f} rows/s, {alone * median / config.batch_size:.1f} times what the step takes in")
        print(f"steps that are fed wait for data {waiting(program, tokenizer, state, frozen):.1%} of their time")


def settings() -> config_lib.RunConfig:
    """The config's, with a start that is never looked for, as weights are random."""
    raw = CONFIG.value.to_dict()
    if ROWS.value:
        raw |= {"batch_size": ROWS.value, "accumulation": 1}
    return config_lib.from_dict(raw)


def sizes_of(config: config_lib.RunConfig) -> tuple[ModelConfig, Tokenizer | None]:
    """Of the model, with fewer layers where that is asked, and the tokeniser that its data needs."""
    variant, tokenizer = get_variant(config.model.variant), None
    if isinstance(config.data, DataOptions):
        tokenizer = train_tokenizer(EasyVQA("train", config.data.root or None).texts(), FORMATS[variant.family])
        variant = config_lib.model_config(config.model, tokenizer.vocab_size, tokenizer.image_id)
    elif PIPELINE.value:
        tokenizer = saved.read(checkpoint.resolve(config.start_from)).tokenizer
    variant = dataclasses.replace(variant, shared_gate=config.model.shared_gate, passes=config.model.passes)
    return infer.cut(variant, infer.LAYERS.value), tokenizer


def asked_flops(program: Program, batch: dict, length: int) -> int:
    """See above; as traced."""
    plain = Program(dataclasses.replace(program.config, remat="none"), program.model.config, program.model.layout)
    traced = cost.traced(jax.make_jaxpr(plain.function)(program.state, program.frozen, batch))
    again = cost.loss_again(program.model.config, length) if program.config.objective != "words" else 0
    return traced - program.config.batch_size * again


def pipeline_rate(program: Program, tokenizer: Tokenizer) -> float:
    """Rows a second of the data, after some seconds in which buffers fill."""
    with Feed(program.config, tokenizer, program, program.config.batch_size) as batches:
        for seconds in (3.0, 6.0):
            count, began = 0, time.perf_counter()
            while time.perf_counter() < began + seconds:
                next(batches)
                count += 1
        return count * program.config.batch_size / (time.perf_counter() - began)


def waiting(program: Program, tokenizer: Tokenizer, state, frozen, steps: int = 20) -> float:
    """Share of 1, after as many steps in which buffers fill."""
    with Feed(program.config, tokenizer, program, program.config.batch_size) as batches:
        for _ in range(2):
            before, began = batches.waited, time.perf_counter()
            for _ in range(steps):
                state, _ = jax.block_until_ready(program.step(state, frozen, next(batches)))
        return (batches.waited - before) / (time.perf_counter() - began)


def rows(program: Program, count: int, length: int) -> dict:
    """A batch of one sample a row: pictures, a question, and an answer in the last quarter."""
    sizes, rng = program.model.config, np.random.default_rng(0)
    tokens = rng.integers(3, sizes.decoder.vocab - 1, (count, length), np.int32)
    tokens[:, : PICTURES.value * sizes.image_tokens] = sizes.image_token
    side = sizes.vision.image_size
    numbers = dict(
        tokens=tokens,
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        segment_ids=np.ones_like(tokens),
        turn_ids=np.zeros_like(tokens),
        loss_mask=np.broadcast_to(np.arange(length) >= length * 3 // 4, tokens.shape),
    )
    return numbers | {"images": rng.integers(0, 256, (count, PICTURES.value, side, side, 3), np.uint8)}


def random_frozen(program: Program) -> dict[str, Any]:
    """What `parameters.load_frozen` reads, drawn an array at a time."""
    config, made = program.config, {}
    for number, (name, wanted) in enumerate(program.frozen.items()):
        shape = program.shapes[name].shape

        def draw(key, name=name, shape=shape):
            leaf = 0.02 * jax.random.normal(key, shape)
            return parameters.freeze(name, leaf, program.treatments[name], program.dtype)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)
        made[name] = jax.jit(draw, out_shardings=shardings)(jax.random.key(config.seed + number))
    return made
