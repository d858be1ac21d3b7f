"""One training step, pure: (state, batch) -> (state, metrics)."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from trol_jax.models.trol import TroL, init_params
from trol_jax.ops.image import normalize
from trol_jax.ops.losses import next_token_loss


@struct.dataclass
class TrainState:
    step: jax.Array  # int32[], steps done
    params: dict
    opt_state: optax.OptState


def init_state(model: TroL, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """A fresh state. Parameters and moments alike are boxed with their logical axis names; see `sharding.rules`."""
    params = init_params(model, rng)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def loss_sums(model: TroL, params, batch: dict, rng: jax.Array):
    """Loss summed over the answer tokens of a batch, and what else is counted on the way.

    batch: see `trol_jax.data.pipeline`. Returns (nats, sums) with sums["tokens"], sums["right"] and, for the mean
    gate, sums["gate"] and sums["gated"] over the tokens that are not padding.
    """
    vision = model.config.vision
    x, out = model.apply(
        {"params": params},
        batch["tokens"],
        normalize(batch["images"], vision.mean, vision.std),
        segment_ids=batch["segment_ids"],
        turn_ids=batch["turn_ids"],
        positions=batch["positions"],
        deterministic=False,
        rngs={"dropout": rng},
    )
    head = params["decoder"]["head"]["kernel"]
    loss, tokens, right = next_token_loss(x, head, batch["tokens"], batch["loss_mask"])
    real = jnp.broadcast_to(batch["segment_ids"] != 0, jnp.shape(out["gate"]))
    gate = jnp.sum(out["gate"], where=real)
    return loss, {"tokens": tokens, "right": right, "gate": gate, "gated": real.sum(dtype=jnp.float32)}


def make_train_step(
    model: TroL, optimizer: optax.GradientTransformation, schedule: optax.Schedule, seed: int, accumulation: int = 1
):
    """The step function. Each step's dropout key comes from the seed and the step alone, so a restart changes nothing.

    accumulation: micro-batches a step. Sums are accumulated and divided once, so that the gradient is that of the
    whole batch however unevenly its answer tokens fall.
    """
    grad_fn = jax.value_and_grad(lambda params, batch, rng: loss_sums(model, params, batch, rng), has_aux=True)

    def split(x):
        """[B, ...] -> [accumulation, B / accumulation, ...], each micro-batch spread over all devices."""
        return x.reshape(len(x) // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulation == 1:
            (loss, sums), grads = grad_fn(state.params, batch, rng)
        else:

            def body(total, piece):
                micro, key = piece
                return jax.tree.map(jnp.add, total, grad_fn(state.params, micro, key)), None

            pieces = jax.tree.map(split, batch), jax.random.split(rng, accumulation)
            zero = jax.eval_shape(grad_fn, state.params, jax.tree.map(lambda x: x[0], pieces[0]), rng)
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zero)
            ((loss, sums), grads), _ = jax.lax.scan(body, zero, pieces)
        tokens = jnp.maximum(sums["tokens"], 1)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss / tokens,
            "token_accuracy": sums["right"] / tokens,
            "gate": sums["gate"] / jnp.maximum(sums["gated"], 1),
            "grad_norm": optax.tree.norm(grads),
            "lr": schedule(state.step),
        }
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return train_step
