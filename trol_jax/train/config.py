"""The settings of a run, typed. Files in `configs/` give the values; every key is declared here once.

A key that is not declared, or one that is missing, is an error that names it: nothing a user sets is silently unread.
Defaults are for checkpoints that were written before a setting was there, and say what was done then.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from trol_jax import typed
from trol_jax.data.packing import MixtureOptions
from trol_jax.data.pipeline import DataOptions
from trol_jax.errors import UserError
from trol_jax.evals import score
from trol_jax.models.layers import REMAT_POLICIES
from trol_jax.models.variants import ModelConfig, check_traversal, get_variant, with_tokenizer
from trol_jax.ops.traversal import RELEASED, Traversal
from trol_jax.sharding import mesh, rules
from trol_jax.sharding.flash import ATTENTIONS
from trol_jax.train import optimizer
from trol_jax.train.optimizer import OptimizerOptions
from trol_jax.train.parameters import LoraOptions, all_trained, parse
from trol_jax.train.step import OBJECTIVES

DTYPES = ("float32", "bfloat16")
HELD_OUT = "held_out/"  # how the names of what is measured on such data begin


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    variant: str  # a name of trol_jax.models.variants.VARIANTS
    shared_gate: bool  # one gate for all layers as released, or one a layer as in the paper
    passes: int  # passes over every token in training and over prompts
    traversal: Traversal = RELEASED  # what studies change


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    every: int = 0  # steps between two; 0 = never
    rows: int = 0  # of data that is held out, whose loss is measured; 0 = none
    benchmarks: tuple = ()  # their names, as launch.evaluate has them
    root: str = ""  # folder of the benchmarks' files
    limit: int = 0  # questions of each; 0 = all
    best: str = ""  # the checkpoint with the best of this metric is kept: held_out/loss or a benchmark; "" = none


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    model: ModelOptions
    data: DataOptions | MixtureOptions
    optimizer: OptimizerOptions
    parameters: tuple  # what becomes of each: ((regular expression, treatment), ...), see trol_jax.train.parameters
    lora: LoraOptions
    evaluation: EvaluationOptions = EvaluationOptions()
    objective: str  # what is minimised, a name of trol_jax.train.step.OBJECTIVES
    z_loss: float = 0.0  # weight of the squared logarithm of the softmax's denominator; 0 = none
    start_from: str  # a run or checkpoint of the same model, whose parameters this run starts with; "" = random
    seed: int
    steps: int
    batch_size: int  # pictures a step, all devices and micro-batches together
    accumulation: int  # micro-batches a step
    dtype: str  # of the computation: float32 or bfloat16
    attention: str = "xla"  # a name of trol_jax.sharding.flash.ATTENTIONS
    remat: str  # what the backward pass recomputes, a name of REMAT_POLICIES
    scan: bool  # compile one layer, or unroll the layers: longer to compile, faster on a CPU
    mesh: str  # devices by axis, as `data=2,fsdp=-1`; see trol_jax.sharding.mesh
    rules: str | dict  # what lies along these: a name of trol_jax.sharding.rules.RULES, or a table as there
    checkpoint_every: int  # steps
    keep: int  # checkpoints on disk
    log_every: int  # steps
    wandb: str = ""  # project of Weights & Biases that gets the metrics too; "" = none


POSITIVE = lambda value: value > 0, "more than 0"
NOT_NEGATIVE = lambda value: value >= 0, "at least 0"
DECAY = lambda value: 0 <= value < 1, "at least 0 and less than 1"
RANGES = {  # of the optimizer
    "lr": POSITIVE, "lr_end": NOT_NEGATIVE, "warmup": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE, "clip": POSITIVE,
    "b1": DECAY, "b2": DECAY, "skips": NOT_NEGATIVE, "skip_norm": NOT_NEGATIVE,
}  # fmt: skip

# Settings that change where a run is computed and how it is watched or fed, not what it computes: it may be continued
# with others.
WATCHING = ("mesh", "rules", "checkpoint_every", "keep", "log_every", "workers", "threads", "evaluation", "wandb")


def from_dict(raw: Mapping[str, Any], where: str = "config", old: bool = False) -> RunConfig:
    """A typed, checked copy of nested dicts; UserError for an unknown or missing key or bad value. old: see `typed`."""
    config = typed.from_dict(raw, RunConfig, where, old)
    check(config)
    return config


def check(config: RunConfig) -> None:
    """UserError for values that cannot work together."""
    get_variant(config.model.variant)
    choices = {"objective": OBJECTIVES, "dtype": DTYPES, "attention": ATTENTIONS, "remat": REMAT_POLICIES}
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UserError(f"config.{name} is {getattr(config, name)!r}, must be one of {', '.join(known)}")
    for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep", "log_every"):
        if getattr(config, name) < 1:
            raise UserError(f"config.{name} is {getattr(config, name)}, must be at least 1")
    mesh.parse(config.mesh)
    rules.table(config.rules)
    if not 0 <= config.seed < 2**32:  # what JAX's keys are made of
        raise UserError(f"config.seed is {config.seed}, must be at least 0 and less than 2**32")
    for name, (fits, wanted) in RANGES.items():
        value = getattr(config.optimizer, name)
        if not (math.isfinite(value) and fits(value)):
            raise UserError(f"config.optimizer.{name} is {value}, must be {wanted}")
    if not (math.isfinite(config.z_loss) and config.z_loss >= 0):
        raise UserError(f"config.z_loss is {config.z_loss}, must be at least 0")
    optimizer.check_rates(config.optimizer.rates)
    _check_evaluation(config)
    for row in config.parameters:
        if not (isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row)):
            raise UserError(f"config.parameters has {row!r}, must be pairs of a regular expression and a treatment")
        if parse(row[1]).lora and config.lora.rank < 1:
            raise UserError(f"config.lora.rank is {config.lora.rank}, must be at least 1 for {row[1]!r}")
        if parse(row[1]).lora and not config.lora.alpha:
            raise UserError(f"config.lora.alpha is 0, with which {row[1]!r} learns nothing")
    if not config.start_from and isinstance(config.data, MixtureOptions):
        raise UserError("config.data is a mixture, so config.start_from must name a checkpoint that has a tokeniser")
    if not config.start_from and not all_trained(config.parameters):
        raise UserError("config.parameters freezes some, so config.start_from must name the checkpoint that has them")
    if not math.isfinite(config.lora.alpha):
        raise UserError(f"config.lora.alpha is {config.lora.alpha}, must be finite")
    if config.optimizer.lr_end > config.optimizer.lr:
        raise UserError(
            f"config.optimizer.lr_end is {config.optimizer.lr_end}, must not be more than lr, {config.optimizer.lr}"
        )
    if config.model.passes < 1:
        raise UserError(f"config.model.passes is {config.model.passes}, must be at least 1")
    layers = get_variant(config.model.variant).decoder.layers
    check_traversal(config.model.traversal, config.model.passes, layers, "config.model.traversal")
    if config.attention == "flash" and getattr(config.data, "isolate_turns", False):
        raise UserError("config.attention is flash, which keeps no turns apart; set config.data.isolate_turns=False")
    if config.batch_size % config.accumulation:
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by config.accumulation {config.accumulation}"
        )


def _check_evaluation(config: RunConfig) -> None:
    options = config.evaluation
    for name in ("every", "rows", "limit"):
        if getattr(options, name) < 0:
            raise UserError(f"config.evaluation.{name} is {getattr(options, name)}, must be at least 0")
    score.chosen(options.benchmarks)
    if options.every and not (options.rows or options.benchmarks):
        raise UserError("config.evaluation has neither rows nor benchmarks; give one, or every=0")
    if options.benchmarks and not options.root:
        raise UserError("config.evaluation.root is missing, the folder of the benchmarks' files")
    if options.benchmarks and config.objective != "answers":
        raise UserError(f"config.evaluation.benchmarks cannot be asked while {config.objective} are trained")
    if options.every and options.rows and isinstance(config.data, MixtureOptions) and not config.data.held_out:
        raise UserError("config.evaluation.rows needs data: let config.data.held_out be 1000, say")
    known = ([f"{HELD_OUT}loss", f"{HELD_OUT}token_accuracy"] if options.rows else []) + list(options.benchmarks)
    if options.best and options.best not in known:
        raise UserError(f"config.evaluation.best is {options.best!r}, must be one of {', '.join(known) or 'nothing'}")


def model_config(options: ModelOptions, vocab: int, image_token: int) -> ModelConfig:
    """The variant with the run's traversal settings and its tokeniser's sizes."""
    return with_tokenizer(with_options(get_variant(options.variant), options), vocab, image_token)


def with_options(model: ModelConfig, options: ModelOptions) -> ModelConfig:
    """The model with the run's gates and passes."""
    return dataclasses.replace(
        model, shared_gate=options.shared_gate, passes=options.passes, traversal=options.traversal
    )


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Settings that differ and change what is computed, as `config.optimizer.lr: 0.001 there, 0.002 here`."""
    if isinstance(new.data, MixtureOptions) and isinstance(old.data, MixtureOptions):  # it may have moved
        old = dataclasses.replace(old, data=dataclasses.replace(old.data, root=new.data.root))
    return _differences(typed.to_dict(old), typed.to_dict(new), "config")


def _differences(old: Mapping, new: Mapping, where: str) -> list[str]:
    found = []
    for key, a in old.items():
        b, place = new[key], f"{where}.{key}"
        if key in WATCHING:
            continue
        if isinstance(a, Mapping):
            found += _differences(a, b, place)
        elif a != b:
            found.append(f"{place}: {a} there, {b} here")
    return found
