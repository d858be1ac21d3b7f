"""AdamW with linear warm-up, cosine decay, clipping by global norm, and learning rates of their own for some."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import optax

from trol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    lr: float
    lr_end: float
    warmup: int  # steps
    weight_decay: float  # on matrices only
    clip: float  # global norm of the gradient
    b1: float
    b2: float
    rates: tuple = ()  # ((regular expression, factor), ...): by what the rate of the parameters so named is multiplied
    skips: int = 0  # bad steps in a row that are left out before the run ends; 0 = the first one ends it
    skip_norm: float = 0.0  # a step is bad if its gradient is longer than this; 0 = only if it is not finite

    def longest(self) -> float | None:
        """Gradient of a step that is not bad; None where no step is looked at before it counts."""
        return (self.skip_norm or math.inf) if self.skips or self.skip_norm else None


def make_schedule(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Step -> learning rate: 0 to `lr` in `warmup` steps, then a cosine that reaches `lr_end` at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, options.lr, options.warmup, max(steps, options.warmup + 1), options.lr_end
    )


def make_optimizer(options: OptimizerOptions, schedule: optax.Schedule) -> optax.GradientTransformation:
    """As `options` say, of parameters in nested or flat dicts, which may be boxed with axis names."""

    def decays(path, _):  # stacked layers add an axis, so the name decides and not the rank
        return _name(path).rpartition("/")[2] in ("kernel", "embedding", "lora_a", "lora_b", "adapter_a", "adapter_b")

    adamw = optax.adamw(
        schedule,
        b1=options.b1,
        b2=options.b2,
        weight_decay=options.weight_decay,
        mask=lambda params: jax.tree_util.tree_map_with_path(decays, params),
    )
    parts = [optax.clip_by_global_norm(options.clip), adamw]
    if options.rates:
        own = lambda path, update: update * rate(options.rates, _name(path))  # noqa: E731
        parts.append(optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(own, updates)))
    return optax.chain(*parts)


def rate(rates: tuple, name: str) -> float:
    """By what a parameter's learning rate is multiplied: the first pattern that matches its name counts."""
    return next((factor for pattern, factor in rates if re.fullmatch(pattern, name)), 1.0)


def check_rates(rates: tuple) -> None:
    """UserError unless they are pairs of a regular expression and a number that is not negative."""
    for row in rates:
        try:
            pattern, factor = row
            re.compile(pattern)
            fits = not isinstance(factor, bool) and 0 <= factor < math.inf
        except (TypeError, ValueError, re.error):
            fits = False
        if not fits:
            raise UserError(f"config.optimizer.rates has {row!r}, must be pairs of a regular expression and a factor")


def require_used(rates: tuple, names: Sequence[str]) -> None:
    """UserError for a pattern that matches none of the parameters that are trained."""
    for pattern, _ in rates:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise UserError(
                f"config.optimizer.rates: the pattern {pattern!r} matches nothing that is trained; "
                f"there is {', '.join(names[:3])}, ..."
            )


def _name(path) -> str:
    return "/".join(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
