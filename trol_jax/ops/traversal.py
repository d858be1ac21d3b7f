"""Layer traversal: the idea of TroL, in one page (arXiv 2406.12246, section 3).

A decoder layer runs twice with the same weights. A gate that looks at the result of the first pass says, token by
token, how much of the second pass to keep:

    h1 = layer(x);  h2 = layer(h1);  s = 0.5 * tanh(gate(h1)) + 0.5;  y = (1 - s) * h1 + s * h2

The model looks at every token of the prompt twice without one more weight in its layers. Three facts follow from the
released code, which the paper leaves open:

* prompts, and all tokens in training, take two passes; a generated token takes one, without a gate
  (trol/arch_*/modeling_*.py: traversal runs only when the sequence is longer than one token);
* the cache keeps the keys and values of the *first* pass; the second pass attends to its own and drops them;
* the gate is one linear map D -> 1, shared by all layers as released, one a layer in the paper.

More than two passes (paper, appendix C, table 8) are not spelled out there. Here pass n + 1 is fed by pass n, and each
is mixed into what stands so far by the gate on its input, which is the formula above when there are two.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Layer = Callable[[jax.Array], tuple[jax.Array, Any]]


def gate_score(h: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """How much of the next pass to keep, in (0, 1).

    h: [B, T, D], kernel: [D], bias: []. Returns float32[B, T].
    """
    logit = jnp.einsum("btd,d->bt", h, kernel.astype(h.dtype), preferred_element_type=jnp.float32)
    return 0.5 * jnp.tanh(logit + bias) + 0.5


def traverse(layer: Layer, gate: Callable[[jax.Array], jax.Array], x: jax.Array, passes: int = 2):
    """Run `layer` on x [B, T, D] `passes` times and mix the passes with `gate`.

    layer(x) -> (h, kv): one pass, and the keys and values it computed. gate(h) -> s [B, T].
    Returns (y [B, T, D], kv of the first pass, scores float32[passes - 1, B, T]).
    """
    h, first_kv = layer(x)
    y, scores = h, []
    for _ in range(passes - 1):
        s = gate(h)
        h, _ = layer(h)
        keep = s[..., None].astype(h.dtype)
        y = (1 - keep) * y + keep * h
        scores.append(s)
    return y, first_kv, jnp.stack(scores) if scores else jnp.zeros((0, *x.shape[:2]), jnp.float32)
