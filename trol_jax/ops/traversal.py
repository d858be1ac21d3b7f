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

`Traversal` has what studies change (paper, section 4.3 and appendix C). By its defaults the model is the released one,
and so is the compiled program.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Step = Callable[[jax.Array, int], jax.Array]

# What becomes of y, which stands so far, h, the next pass, and its score s [B, T, 1].
MIXES = {
    "gate": lambda y, h, s: (1 - s) * y + s * h,
    "first": lambda y, h, s: (1 - s) * y,  # the terms of the formula by themselves, gate included, as in the paper
    "second": lambda y, h, s: s * h,
}
# The same formula with scores that no gate gives.
MIXES |= dict.fromkeys(
    (
        "random",  # drawn from [0, 1), for each token and layer anew; in answers, by the token's position
        "uniform",  # of each pass as much: the mean of all passes
        "constant",  # learned, of a layer (or of all, where they share a gate), the same for every token
    ),
    MIXES["gate"],
)
GATES = ("linear", "two_linear")  # D -> 1, or D -> D, GELU, D -> 1 (the paper names no activation)
TOKENS = {  # which tokens are traversed
    "all": lambda image, answer: None,
    "prompt": lambda image, answer: None if answer is None else ~answer,  # not those to be learned
    "image": lambda image, answer: image,
    "text": lambda image, answer: ~image,
}


@dataclasses.dataclass(frozen=True)
class Traversal:
    """A token, or layer, that is not traversed keeps its first pass. Other tokens' further passes still attend to what
    it would have been in theirs, so it takes as long; a layer costs one pass. A generated token keeps its first pass
    unmixed, unless `decode` is set.
    """

    mix: str = "gate"  # one of MIXES
    gate: str = "linear"  # one of GATES
    gates: int = 1  # one for all further passes, or one for each: passes - 1
    tokens: str = "all"  # one of TOKENS
    layers: str = "all"  # or "first 8", "last 8", "every 2" (from the first on), or numbers from 0 on: "0 3 5"
    decode: bool = False  # generated tokens are traversed too: `passes` times the time and cache
    answer_passes: int = 0  # over prompts, when answering; 0 = as in training


RELEASED = Traversal()


def check(options: Traversal, passes: int, layers: int) -> None:
    """ValueError, which names the option, for values that cannot work (together)."""
    for name, known in (("mix", MIXES), ("gate", GATES), ("tokens", TOKENS)):
        if getattr(options, name) not in known:
            raise ValueError(f"{name} is {getattr(options, name)!r}, must be one of {', '.join(known)}")
    if options.gates not in (1, max(1, passes - 1)):
        raise ValueError(f"gates is {options.gates}, must be 1, or {passes - 1} with {passes} passes")
    if options.answer_passes < 0:
        raise ValueError(f"answer_passes is {options.answer_passes}, must be at least 1, or 0 for as in training")
    if options.decode and options.tokens not in ("all", "text"):
        raise ValueError(f"decode is True, and tokens {options.tokens!r} leaves out those that are generated")
    traversed(options.layers, layers)


def traversed(text: str, layers: int) -> tuple[bool, ...]:
    """Of each layer, whether it is traversed; see `Traversal.layers`."""
    words, chosen = text.split(), ()
    parts = {"first": lambda n: slice(n), "last": lambda n: slice(-n, None), "every": lambda n: slice(None, None, n)}
    if words == ["all"]:
        chosen = range(layers)
    elif len(words) == 2 and words[0] in parts:
        if words[1].isdecimal() and 0 < int(words[1]) <= layers:
            chosen = range(layers)[parts[words[0]](int(words[1]))]
    elif all(word.isdecimal() and int(word) < layers for word in words):
        chosen = [*map(int, words)]
    if not chosen:
        raise ValueError(
            f"layers is {text!r}, must be all, 'first 2', 'last 2', 'every 2' or numbers below {layers}, as '0 1'"
        )
    return tuple(layer in chosen for layer in range(layers))


def gate_score(h: jax.Array, kernel: jax.Array, bias: jax.Array, *hidden: jax.Array) -> jax.Array:
    """How much of the next pass to keep, in (0, 1).

    h: [B, T, D], kernel: [D], bias: []; hidden: [D, D] and [D] of the map before, if any. Returns float32[B, T].
    """
    if hidden:
        h = jax.nn.gelu(h @ hidden[0].astype(h.dtype) + hidden[1].astype(h.dtype))
    logit = jnp.einsum("btd,d->bt", h, kernel.astype(h.dtype), preferred_element_type=jnp.float32)
    return 0.5 * jnp.tanh(logit + bias) + 0.5


def score(options: Traversal, gate: tuple[jax.Array, ...], h: jax.Array, done: int, draw) -> jax.Array:
    """The score float32[B, T] of the next pass by the options; h: of the last of the `done` passes, [B, T, D].

    gate: what `gate_score` takes, each with a leading axis where there are several gates. draw: (random key, int[B, T]
    that tell what draws differ), for mix "random".
    """
    if options.gates > 1:
        gate = tuple(each[min(done, options.gates) - 1] for each in gate)
    if options.mix == "random":
        key, places = draw
        key = jax.random.fold_in(key, done)
        return jax.vmap(jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place))))(places)
    if options.mix == "uniform":
        return jnp.full(h.shape[:2], 1 / (done + 1), jnp.float32)
    if options.mix == "constant":
        return jnp.broadcast_to(0.5 * jnp.tanh(gate[1]) + 0.5, h.shape[:2])
    return gate_score(h, *gate)


def traverse(layer: Step, score: Step, x: jax.Array, passes: int = 2, mix: str = "gate", where=None):
    """Run `layer` on x [B, T, D] `passes` times and mix the passes by their scores.

    layer(h, n): pass n, from 0 on, of what the pass before made. score(h, n) -> s [B, T] of pass n, likewise.
    where: bool that broadcasts to [B, T], what is traversed; None = everything.
    Returns (y [B, T, D], scores float32[passes - 1, B, T], 0 where nothing is traversed).
    """
    y = h = layer(x, 0)
    scores = []
    for n in range(1, passes):
        s = score(h, n)
        h = layer(h, n)
        mixed = MIXES[mix](y, h, s[..., None].astype(h.dtype))
        if where is not None:
            s, mixed = jnp.where(where, s, 0), jnp.where(where[..., None], mixed, y)
        y = mixed
        scores.append(s)
    return y, jnp.stack(scores) if scores else jnp.zeros((0, *x.shape[:2]), jnp.float32)
