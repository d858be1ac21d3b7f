"""One training step, pure: (state, frozen parameters, batch) -> (state, metrics)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from trol_jax.models.trol import TroL
from trol_jax.ops.image import normalize
from trol_jax.ops.linear import Copies, Kernel
from trol_jax.ops.losses import bag_of_words_loss, next_token_loss

OPEN, CLOSED = 0.9, 0.1  # gates above keep the second pass alone, those below the first


@struct.dataclass
class TrainState:
    step: jax.Array  # int32[], steps done
    params: dict  # those that are trained
    opt_state: optax.OptState


def init_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state of what is trained. Moments are boxed with logical axis names as the parameters are."""
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def answer_sums(model: TroL, params, batch: dict, rng: jax.Array | None, z_loss: float = 0.0) -> dict:
    """The model's loss: every answer token given all before it; for z_loss see `next_token_loss`. Also the gate over
    tokens that are not padding: its mean, and by layer its mean, its mean square, and the shares of tokens where it is
    open and closed.
    """
    x, out = model.apply(
        {"params": params},
        batch["tokens"],
        pixels(model, batch),
        segment_ids=batch["segment_ids"],
        turn_ids=batch["turn_ids"],
        positions=batch["positions"],
        loss_mask=batch["loss_mask"],
        deterministic=rng is None,
        rngs=None if rng is None else {"dropout": rng},
    )
    head = _gathered(params["decoder"]["head"]["kernel"], model)
    loss, tokens, right = next_token_loss(x, head, batch["tokens"], batch["loss_mask"], z_loss=z_loss)
    gate, real = out["gate"], jnp.broadcast_to(batch["segment_ids"] != 0, jnp.shape(out["gate"])[1:])
    count = real.sum(dtype=jnp.float32)  # of a layer
    by_layer = lambda values: (jnp.sum(values, where=real, axis=(1, 2, 3), dtype=jnp.float32), count)  # noqa: E731
    mean = by_layer(gate)
    return {
        "loss": (loss, tokens),
        "token_accuracy": (right, tokens),
        "gate": (mean[0].sum(), count * len(gate)),
        "gate_mean": mean,
        "gate_square": by_layer(gate**2),
        "gate_open": by_layer(gate > OPEN),
        "gate_closed": by_layer(gate < CLOSED),
    }


def _gathered(head: jax.Array, model: TroL) -> Kernel:
    """Here, and not for each piece of the loss; its gradient too is summed over devices once."""
    if copies := getattr(model.layout, "copies", None):
        return Copies(head, copies(head.astype(model.dtype), "embed", "vocab"))
    return model.layout(head, None, "act_vocab")


def text_sums(model: TroL, params, batch: dict, rng: jax.Array | None, z_loss: float = 0.0) -> dict:
    """A plain language model's loss: every token of the text, questions too; no picture is seen."""
    x, _ = model.apply(
        {"params": params},
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        turn_ids=batch["turn_ids"],
        positions=batch["positions"],
        deterministic=rng is None,
        rngs=None if rng is None else {"dropout": rng},
    )
    text = (batch["segment_ids"] != 0) & (batch["tokens"] != model.config.image_token)
    head = _gathered(params["decoder"]["head"]["kernel"], model)
    loss, tokens, right = next_token_loss(x, head, batch["tokens"], text, z_loss=z_loss)
    return {"loss": (loss, tokens), "token_accuracy": (right, tokens)}


def word_sums(model: TroL, params, batch: dict, rng: jax.Array | None, z_loss: float = 0.0) -> dict:
    """Pretraining of the vision tower, without the decoder: the words of a row's answers given its image tokens' mean.

    The words are vectors of the decoder's embedding table, so pictures come to speak the language the decoder reads.
    It has no z-loss.
    """
    images = pixels(model, batch)
    features = model.apply({"params": params}, images.reshape(-1, *images.shape[2:]), method="encode_images")
    mean = features.reshape(len(images), -1, features.shape[-1]).mean(axis=1)
    table = params["decoder"]["embedding"]
    loss, words, right = bag_of_words_loss(mean, table, batch["tokens"], batch["loss_mask"])
    return {"loss": (loss, words), "token_accuracy": (right, words)}


def pixels(model: TroL, batch: dict) -> jax.Array:
    return normalize(batch["images"], model.config.vision.mean, model.config.vision.std)


# What a run minimises. Each: (model, params, batch of `data.pipeline`, rng, z_loss) -> {metric: (sum, count)}, the
# first of them "loss", in nats; a sum may be a vector. rng: of dropout; None = none. Sums and counts of micro-batches
# add up; each metric is their quotient.
OBJECTIVES = {"answers": answer_sums, "text": text_sums, "words": word_sums}


def groups(params) -> dict[str, list]:
    """The arrays of each part of the model: vision, projector, gate, embedding, layers, adapters, ..."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.setdefault(_group(jax.tree_util.keystr(path, simple=True, separator="/")), []).append(leaf)
    return found


def _group(name: str) -> str:
    first, *rest = name.split("/")
    if first != "decoder":
        return first
    return "adapters" if "adapter_" in rest[-1] else "gate" if rest[0].startswith("gate_") else rest[0]


def make_train_step(
    model: TroL,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    objective: str = "answers",
    z_loss: float = 0.0,
    seed: int = 0,
    accumulation: int = 1,
    skip_norm: float | None = None,
    join: Callable[[dict, dict], dict] = lambda trained, frozen: trained,
    place: Callable = lambda grads: grads,
):
    """The step function: (state, frozen parameters, batch) -> (state, metrics).

    Each step's dropout key comes from the seed and the step alone, so a restart changes nothing.

    objective: a name of OBJECTIVES.
    accumulation: micro-batches a step. Sums are accumulated and divided once, so that the gradient is that of the
    whole batch however unevenly its answer tokens fall.
    skip_norm: a step whose gradient is longer, or not finite, changes no parameter and no moment, and its metric
    "skipped" is 1; None = all steps count.
    join: makes the model's parameters of those that are trained and those that are frozen; see `train.parameters`.
    place: keeps gradients where their parameters lie (`sharding.rules.Layout.place`).
    """

    def loss_and_sums(params, frozen, batch, rng):
        sums = OBJECTIVES[objective](model, join(params, frozen), batch, rng, z_loss)
        return sums["loss"][0], sums

    def grad_fn(params, frozen, batch, rng):
        grads, sums = jax.grad(loss_and_sums, has_aux=True)(params, frozen, batch, rng)
        return place(grads), sums

    def split(x):
        """[B, ...] -> [accumulation, B / accumulation, ...], each micro-batch spread over all devices."""
        return x.reshape(len(x) // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)

    def train_step(state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulation == 1:
            grads, sums = grad_fn(state.params, frozen, batch, rng)
        else:

            def body(total, piece):
                micro, key = piece
                return jax.tree.map(jnp.add, total, grad_fn(state.params, frozen, micro, key)), None

            pieces = jax.tree.map(split, batch), jax.random.split(rng, accumulation)
            zero = jax.eval_shape(grad_fn, state.params, frozen, jax.tree.map(lambda x: x[0], pieces[0]), rng)
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zero)
            (grads, sums), _ = jax.lax.scan(body, zero, pieces)
        _, tokens = sums["loss"]
        grads = jax.tree.map(lambda g: g / jnp.maximum(tokens, 1), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
        if "gate_square" in metrics:
            spread = metrics.pop("gate_square") - metrics["gate_mean"] ** 2
            metrics["gate_spread"] = jnp.sqrt(jnp.maximum(spread, 0))
        metrics |= {"grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        if skip_norm is not None:
            good = jnp.isfinite(metrics["grad_norm"]) & (metrics["grad_norm"] <= skip_norm)
            new = jax.tree.map(lambda new, old: jnp.where(good, new, old) if _is_float(new) else new, new, state)
            metrics["skipped"] = 1.0 - good
        for kind, tree in (("grad_norm", grads), ("update_norm", updates)):
            metrics |= {f"{kind}/{group}": optax.tree.norm(part) for group, part in groups(tree).items()}
        return new, metrics

    return train_step


def _is_float(leaf: jax.Array) -> bool:
    """Steps that are counted go on in any case, and the schedule with them."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)
