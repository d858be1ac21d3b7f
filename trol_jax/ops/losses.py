"""What training minimises: a masked next-token loss that never holds all logits, and a loss on bags of words."""

import jax
import jax.numpy as jnp

from trol_jax.ops.linear import Kernel, product


def next_token_loss(
    x: jax.Array, head: Kernel, tokens: jax.Array, mask: jax.Array, chunk: int = 512, z_loss: float = 0.0
):
    """Cross-entropy of each token given the state before it, summed over the masked tokens.

    x: [B, T, D] final states, head: [D, V], tokens: int[B, T], mask: bool[B, T] (True = this token is to be predicted).
    At most `chunk` tokens a row go through the head at a time, in pieces of one size, and are computed again in the
    backward pass, so that the largest float32 array is [B, chunk, V] and not [B, T, V] (1.5 GB for 4,096 tokens of
    InternLM2's 92,544).
    z_loss times the squared logarithm of the softmax's denominator is added to each loss, so that logits do not drift
    (PaLM, arXiv 2204.02311, section 5).
    Returns (sum of the losses in nats, float32[]; number of masked tokens, float32[]; number of those whose most
    likely token is right, float32[]).
    """
    x, weights = x[:, :-1], mask[:, 1:].astype(jnp.float32)
    targets = jnp.where(mask[:, 1:], tokens[:, 1:], 0)  # an image token may lie beyond the vocabulary
    chunks = -(-x.shape[1] // chunk)
    if chunks <= 1:
        loss, right = _chunk_loss(x, head, targets, weights, z_loss)
        return loss, weights.sum(), right

    chunk = -(-x.shape[1] // chunks)

    def split(a):
        a = jnp.pad(a, ((0, 0), (0, chunks * chunk - a.shape[1])) + ((0, 0),) * (a.ndim - 2))
        return a.reshape(a.shape[0], chunks, chunk, *a.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def body(total, piece):
        loss, right = _chunk_loss(piece[0], head, *piece[1:], z_loss)
        return (total[0] + loss, total[1] + right), None

    zero = jnp.zeros((), jnp.float32)
    (loss, right), _ = jax.lax.scan(body, (zero, zero), (split(x), split(targets), split(weights)))
    return loss, weights.sum(), right


def _chunk_loss(x, head, targets, weights, z_loss):
    logits = product(x, head, 1, jnp.float32)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z - target_logits
    if z_loss:
        loss += z_loss * log_z**2
    right = target_logits >= logits.max(axis=-1)
    return (loss * weights).sum(), (right * weights).sum()


def bag_of_words_loss(x: jax.Array, table: jax.Array, tokens: jax.Array, mask: jax.Array):
    """Cross-entropy of each distinct masked token of a row given one vector for the row, summed over tokens and rows.

    x: [B, D], table: [V, D] vectors of the vocabulary, tokens: int[B, T], mask: bool[B, T].
    Order and number of a token do not count: pictures are described by the words that people use about them (Joulin et
    al., arXiv 1511.02251; Huang et al., arXiv 2411.03313).
    Returns (sum of the losses in nats, float32[]; number of distinct tokens, float32[]; number of them found, where a
    row of n is granted its n most likely tokens, float32[]).
    """
    logits = jnp.einsum("bd,vd->bv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
    wanted = jnp.zeros(logits.shape, bool).at[jnp.arange(len(x))[:, None], tokens].max(mask)
    count = wanted.sum(axis=1, keepdims=True)
    least = jnp.take_along_axis(jnp.sort(logits, axis=1, descending=True), jnp.maximum(count - 1, 0), axis=1)
    loss = -jnp.sum(jax.nn.log_softmax(logits), where=wanted)
    return loss, count.sum(dtype=jnp.float32), jnp.sum(wanted & (logits >= least), dtype=jnp.float32)
