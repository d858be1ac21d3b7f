"""A way to run a task over devices, and the program that it compiles to, from shapes alone: no array is made."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from trol_jax.errors import UserError
from trol_jax.infer.generate import decoder, inputs, prefill
from trol_jax.infer.weights import maker
from trol_jax.models.cache import Cache
from trol_jax.models.layers import REMAT_POLICIES
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import ModelConfig, get_variant
from trol_jax.sharding import mesh, rules
from trol_jax.sharding.flash import ATTENTIONS, attend
from trol_jax.sharding.rules import Layout
from trol_jax.train import parameters
from trol_jax.train.optimizer import OptimizerOptions, make_optimizer, make_schedule
from trol_jax.train.step import init_state, make_train_step

TASKS = ("train", "qlora", "prefill", "decode")
REMATS = tuple(name for name in REMAT_POLICIES if name != "offload")  # what the host keeps is not planned
# What QLoRA trains: low-rank pairs beside the decoder's kernels, which are nf4, and the gate.
QLORA = ((r"decoder/layers/block/\w+/kernel", "lora nf4"), (r"decoder/gate_.*", "train"), (".*", "freeze"))
PAIRS = parameters.LoraOptions(rank=64, alpha=16.0)
# No value of these changes what is computed or sent.
OPTIMIZER = OptimizerOptions(lr=1e-4, lr_end=0.0, warmup=1, weight_decay=0.0, clip=1.0, b1=0.9, b2=0.95)


@dataclasses.dataclass(frozen=True)
class Strategy:
    variant: str
    task: str  # of TASKS
    mesh: str  # as `data=2,fsdp=-1`
    rules: str  # a name of sharding.rules.RULES
    batch: int  # rows of all devices
    length: int  # tokens of a row, its pictures' included; of decode: slots of the cache
    pictures: int = 1  # of a row
    remat: str = "layer"  # of REMAT_POLICIES; of training
    accumulation: int = 1  # micro-batches of a step; of training
    passes: int = 2
    attention: str = "xla"  # of flash.ATTENTIONS; of training

    @property
    def trains(self) -> bool:
        return self.task in ("train", "qlora")

    @property
    def tokens(self) -> int:
        """That a step takes in, or puts out."""
        return self.batch if self.task == "decode" else self.batch * self.length

    @property
    def config(self) -> ModelConfig:
        return dataclasses.replace(get_variant(self.variant), passes=self.passes)


def check(s: Strategy) -> None:
    """UserError for what no mesh can make work."""
    config = get_variant(s.variant)
    mesh.parse(s.mesh)
    rules.table(s.rules)
    for name, known in (("task", TASKS), ("remat", REMATS), ("attention", ATTENTIONS)):
        if getattr(s, name) not in known:
            raise UserError(f"{name} {getattr(s, name)!r} is not known; choose one of {', '.join(known)}")
    for name in ("batch", "length", "accumulation", "passes"):
        if getattr(s, name) < 1:
            raise UserError(f"{name} is {getattr(s, name)}, must be at least 1")
    if s.pictures < 0:
        raise UserError(f"pictures is {s.pictures}, must be at least 0")
    if s.trains and s.pictures == 0:
        raise UserError("pictures is 0, and a row of training has at least one")
    if s.batch % s.accumulation:
        raise UserError(f"batch {s.batch} is not divisible by accumulation {s.accumulation}")
    if s.task != "decode" and s.pictures * config.image_tokens > s.length - 2:
        raise UserError(
            f"{s.pictures} pictures are {s.pictures * config.image_tokens} tokens of {s.variant}, more than a row of "
            f"{s.length} has beside two of text; make length larger"
        )


@dataclasses.dataclass(frozen=True)
class Built:
    """function: jitted; inputs: shapes with shardings; parts: of the inputs, by what they are for."""

    function: Callable
    inputs: tuple
    parts: Mapping[str, Any]


def build(s: Strategy, layout: Layout) -> Built:
    """UserError where batch, mesh and rules do not go together."""
    check(s)
    make = {"prefill": _prefill, "decode": _decode}.get(s.task, _train)
    return make(s, layout)


def _model(s: Strategy, layout: Layout) -> TroL:
    if not s.trains:
        return TroL(s.config, jnp.bfloat16, layout=layout)
    return TroL(s.config, jnp.bfloat16, remat=s.remat, layout=layout, attend=attend(s.attention, layout, jnp.bfloat16))


def _train(s: Strategy, layout: Layout) -> Built:
    model, rng = _model(s, layout), jax.random.key(0)
    table = QLORA if s.task == "qlora" else ((".*", "train"),)
    boxed_params = abstract_params(model)
    found = parameters.treatments(table, list(flatten_dict(nn.unbox(boxed_params), sep="/")))
    schedule = make_schedule(OPTIMIZER, 10)
    optimizer = make_optimizer(OPTIMIZER, schedule)

    def init(params):
        trained, frozen = parameters.split(params, found, PAIRS, model.dtype, rng)
        return init_state(trained, optimizer), frozen

    boxed = jax.eval_shape(init, boxed_params)
    shardings = layout.shardings(boxed)
    state, frozen = _placed(nn.unbox(boxed), shardings)
    over_devices = layout.batch(s.batch // s.accumulation)
    step = make_train_step(
        model, optimizer, schedule, accumulation=s.accumulation, join=parameters.joiner(PAIRS),
        place=functools.partial(layout.place, boxed=boxed[0].params),
    )  # fmt: skip
    function = jax.jit(
        step,
        in_shardings=(*shardings, over_devices),
        out_shardings=(shardings[0], layout.everywhere),
        donate_argnums=0,
    )
    batch = _batch(s, over_devices)
    parts = {"parameters": (state.params, frozen), "optimiser": state.opt_state, "gradients": state.params}
    return Built(function, (state, frozen, batch), parts | {"batch": batch})


def _batch(s: Strategy, sharding) -> dict:
    """As `trol_jax.data.pipeline` makes them."""
    rows = lambda dtype, *shape: jax.ShapeDtypeStruct((s.batch, *shape), dtype, sharding=sharding)  # noqa: E731
    size = s.config.vision.image_size
    numbers = {name: rows(jnp.int32, s.length) for name in ("tokens", "positions", "segment_ids", "turn_ids")}
    images = rows(jnp.uint8, s.pictures, size, size, 3)
    return numbers | {"loss_mask": rows(jnp.bool_, s.length), "images": images}


def _prefill(s: Strategy, layout: Layout) -> Built:
    model = _model(s, layout)
    params, rows = _weights(model, layout, separate=False), layout.batch(s.batch)
    size = s.config.vision.image_size
    tokens = jax.ShapeDtypeStruct((s.batch, s.length), jnp.int32, sharding=rows)
    tiles = jax.ShapeDtypeStruct((s.batch, s.pictures, size, size, 3), jnp.uint8, sharding=rows)

    def prompt(params, tokens, tiles):
        logits, cache, _ = prefill(model, params, *inputs(model, tokens, tiles), 0)
        return logits, cache

    given = (params, tokens, tiles if s.pictures else None)
    return Built(jax.jit(prompt), given, {"parameters": params, "batch": given[1:]})


def _decode(s: Strategy, layout: Layout) -> Built:
    model, c = dataclasses.replace(_model(s, layout), separate=True), s.config.decoder
    params, rows = _weights(model, layout, separate=True), layout.batch(s.batch)
    names, shape = ("batch", "act_kv_heads", "slots", None), (s.batch, c.kv_heads, s.length, c.head_dim)
    slots = jax.ShapeDtypeStruct(shape, model.dtype, sharding=layout.sharding(names, shape, parameter=False))
    of_rows = lambda dtype, *shape: jax.ShapeDtypeStruct((s.batch, *shape), dtype, sharding=rows)  # noqa: E731
    number = of_rows(jnp.int32)
    cache = Cache(([slots] * c.layers, [slots] * c.layers), of_rows(jnp.bool_, s.length), number, number)

    def token(params, cache, tokens):
        return decoder(model, params)(tokens, cache)

    given = (params, cache, of_rows(jnp.int32, 1))
    return Built(jax.jit(token, donate_argnums=1), given, {"parameters": params, "cache": cache})


def _weights(model: TroL, layout: Layout, separate: bool) -> dict:
    """As answers hold them, in bfloat16; separate: each layer's own."""
    found = {}
    for name, leaf in flatten_dict(abstract_params(dataclasses.replace(model, separate=False)), sep="/").items():
        shape, names = leaf.value.shape, leaf.names
        dtype = maker(name, "bfloat16").keywords["dtype"]
        if separate and "layers" in name.split("/"):
            own = jax.ShapeDtypeStruct(shape[1:], dtype, sharding=layout.sharding(names[1:], shape[1:]))
            found |= {name.replace("layers", f"layers_{i}"): own for i in range(shape[0])}
        else:
            found[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(names, shape))
    return unflatten_dict(found, sep="/")


def _placed(tree, shardings):
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)
