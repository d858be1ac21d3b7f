"""The settings of a run, typed. Files in `configs/` give the values; every key is declared here once.

A key that is not declared, or one that is missing, is an error that names it: nothing a user sets is silently unread.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from trol_jax.data.pipeline import DataOptions
from trol_jax.errors import UserError
from trol_jax.models.layers import REMAT_POLICIES
from trol_jax.models.variants import ModelConfig, get_variant, with_tokenizer
from trol_jax.train.optimizer import OptimizerOptions
from trol_jax.train.step import OBJECTIVES

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    variant: str  # a name of trol_jax.models.variants.VARIANTS
    shared_gate: bool  # one gate for all layers as released, or one a layer as in the paper
    passes: int  # passes over every token in training and over prompts


@dataclasses.dataclass(frozen=True)
class RunConfig:
    model: ModelOptions
    data: DataOptions
    optimizer: OptimizerOptions
    objective: str  # what is minimised, a name of trol_jax.train.step.OBJECTIVES
    start_from: str  # a run or checkpoint of the same model, whose parameters this run starts with; "" = random
    seed: int
    steps: int
    batch_size: int  # pictures a step, all devices and micro-batches together
    accumulation: int  # micro-batches a step
    dtype: str  # of the computation: float32 or bfloat16
    remat: str  # what the backward pass recomputes, a name of REMAT_POLICIES
    scan: bool  # compile one layer, or unroll the layers: longer to compile, faster on a CPU
    checkpoint_every: int  # steps
    keep: int  # checkpoints on disk
    log_every: int  # steps


# Settings that change how a run is watched, not what it computes: a run may be continued with others.
WATCHING = ("checkpoint_every", "keep", "log_every")


def from_dict(raw: Mapping[str, Any], cls=RunConfig, where: str = "config"):
    """A typed copy of nested dicts; UserError for an unknown key, a missing key or a value of the wrong type."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {where}.{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise UserError(f"{where}.{key} is not a setting; {hint}")
    if missing := [name for name in fields if name not in raw]:
        raise UserError(f"{where} lacks the settings {', '.join(missing)}")
    values = {}
    for name, field in fields.items():
        value, place = raw[name], f"{where}.{name}"
        if dataclasses.is_dataclass(field.type):
            values[name] = from_dict(value, field.type, place)
            continue
        if isinstance(value, list):
            value = tuple(value)
        wanted = {int: int, float: (int, float), str: str, bool: bool}.get(field.type, object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and field.type in (int, float)):
            raise UserError(f"{place} is {value!r}, must be of type {field.type.__name__}")
        values[name] = field.type(value) if field.type is float else value
    config = cls(**values)
    if cls is RunConfig:
        check(config)
    return config


def check(config: RunConfig) -> None:
    """UserError for values that cannot work together."""
    get_variant(config.model.variant)
    choices = {"objective": OBJECTIVES, "dtype": DTYPES, "remat": REMAT_POLICIES}
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UserError(f"config.{name} is {getattr(config, name)!r}, must be one of {', '.join(known)}")
    for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep", "log_every"):
        if getattr(config, name) < 1:
            raise UserError(f"config.{name} is {getattr(config, name)}, must be at least 1")
    if config.model.passes < 1:
        raise UserError(f"config.model.passes is {config.model.passes}, must be at least 1")
    if config.batch_size % config.accumulation:
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by config.accumulation {config.accumulation}"
        )


def model_config(options: ModelOptions, vocab: int, image_token: int) -> ModelConfig:
    """The variant with the run's traversal settings and its tokeniser's sizes."""
    variant = dataclasses.replace(get_variant(options.variant), shared_gate=options.shared_gate, passes=options.passes)
    return with_tokenizer(variant, vocab, image_token)


def to_dict(config: RunConfig) -> dict:
    """JSON-able; `from_dict` takes it back."""
    return dataclasses.asdict(config)


def differences(old: Mapping, new: Mapping, where: str = "config") -> list[str]:
    """Settings that differ and change what is computed, as `config.optimizer.lr: 0.001 there, 0.002 here`."""
    found = []
    for key in sorted(set(old) | set(new)):
        a, b, place = old.get(key), new.get(key), f"{where}.{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, place)
        elif key not in WATCHING and _plain(a) != _plain(b):
            found.append(f"{place}: {a} there, {b} here")
    return found


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
