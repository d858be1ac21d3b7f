"""AdamW with linear warm-up, cosine decay and clipping by global norm."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    lr: float
    lr_end: float
    warmup: int  # steps
    weight_decay: float  # on matrices only
    clip: float  # global norm of the gradient
    b1: float
    b2: float


def make_schedule(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Step -> learning rate: 0 to `lr` in `warmup` steps, then a cosine that reaches `lr_end` at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, options.lr, options.warmup, max(steps, options.warmup + 1), options.lr_end
    )


def make_optimizer(options: OptimizerOptions, schedule: optax.Schedule) -> optax.GradientTransformation:
    def decays(path, _):
        # Stacked layers add an axis, so the name decides and not the rank. Parameters may be boxed with axis names.
        name = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
        return name.rpartition("/")[2] in ("kernel", "embedding", "lora_a", "lora_b", "adapter_a", "adapter_b")

    adamw = optax.adamw(
        schedule,
        b1=options.b1,
        b2=options.b2,
        weight_decay=options.weight_decay,
        mask=lambda params: jax.tree_util.tree_map_with_path(decays, params),
    )
    return optax.chain(optax.clip_by_global_norm(options.clip), adamw)
