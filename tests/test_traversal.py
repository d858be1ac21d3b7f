"""What layer traversal promises, by property, on models of both families."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from trol_jax.infer.generate import generate
from trol_jax.models.cache import Cache
from trol_jax.models.layers import REMAT_POLICIES, unstack_layers
from trol_jax.models.trol import TroL
from trol_jax.ops.traversal import gate_score, traverse


@functools.partial(jax.jit, static_argnums=0, static_argnames="passes")
def run(module, params, tokens, images=None, **options):
    return module.apply({"params": params}, tokens, images, **options)


def with_options(module, **options):
    config = module.config
    traversal = dataclasses.replace(config.traversal, **options)
    return dataclasses.replace(module, config=dataclasses.replace(config, traversal=traversal))


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


def test_formula():
    x, w = jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (4, 4))
    layer = lambda h, n: jnp.tanh(h @ w)  # noqa: E731
    gate = lambda h, n: gate_score(h, w[0], jnp.float32(0.3))  # noqa: E731
    h1 = jnp.tanh(x @ w)
    h2 = jnp.tanh(h1 @ w)
    s = (0.5 * jnp.tanh(h1 @ w[0] + 0.3) + 0.5)[..., None]
    y, scores = traverse(layer, gate, x)
    close(y, (1 - s) * h1 + s * h2)
    close(scores, s[None, ..., 0])
    y1, none = traverse(layer, gate, x, passes=1)
    close(y1, h1)
    assert none.shape == (0, 2, 3)
    s3 = (0.5 * jnp.tanh(h2 @ w[0] + 0.3) + 0.5)[..., None]
    y3, scores = traverse(layer, gate, x, passes=3)
    close(y3, (1 - s3) * ((1 - s) * h1 + s * h2) + s3 * jnp.tanh(h2 @ w))
    assert scores.shape == (2, 2, 3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scan_equals_unrolled_and_separate_layers(family):
    module, params = tiny.model(family)
    tokens, images = tiny.with_picture(module, tiny.tokens(2, 5)), tiny.images(2)
    x, out = run(module, params, tokens, images)
    unrolled = run(dataclasses.replace(module, scan=False), params, tokens, images)
    separate = run(dataclasses.replace(module, separate=True), unstack_layers(params), tokens, images)
    for y, y_out in (unrolled, separate):
        close(x, y)
        close(out["gate"], y_out["gate"])
        for a, b in zip(out["kv"], y_out["kv"], strict=True):
            close(a, jnp.stack(b) if isinstance(b, list) else b)


@pytest.mark.parametrize(("family", "shared_gate"), [("internlm2", True), ("phi3", True), ("phi3", False)])
def test_a_closed_gate_leaves_one_pass(family, shared_gate):
    module, params = tiny.model(family, shared_gate=shared_gate)
    decoder = params["decoder"]
    assert decoder["gate_bias"].shape == (() if shared_gate else (2,))
    shut = {"gate_kernel": 0 * decoder["gate_kernel"], "gate_bias": 0 * decoder["gate_bias"] - 40.0}
    params = params | {"decoder": decoder | shut}
    tokens, images = tiny.with_picture(module, tiny.tokens(2, 5)), tiny.images(2)
    two, out = run(module, params, tokens, images)
    one, _ = run(module, params, tokens, images, passes=1)
    assert (out["gate"] == 0).all()
    close(two, one, 0)
    open_gate = params | {"decoder": decoder}
    assert np.abs(run(module, open_gate, tokens, images)[0] - one).max() > 0.01


def test_a_shared_gates_gradient_is_the_sum_over_layers():
    shared, params = tiny.model("phi3")
    one_each = TroL(tiny.config("phi3", shared_gate=False))
    decoder = params["decoder"]
    copies = {name: jnp.stack([decoder[name]] * 2) for name in ("gate_kernel", "gate_bias")}
    tokens = tiny.tokens(2, 6)
    grad = lambda m, p: jax.jit(jax.grad(lambda p: (m.apply({"params": p}, tokens)[0] ** 2).sum()))(p)["decoder"]  # noqa: E731
    total, parts = grad(shared, params), grad(one_each, params | {"decoder": decoder | copies})
    for name in copies:
        assert np.abs(parts[name][0] - parts[name][1]).max() > 1e-3
        close(total[name], parts[name].sum(axis=0), 1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_causality_by_gradients(family):
    module, params = tiny.model(family)
    # Every word has an embedding row of its own, so that gradients tell positions apart.
    words = jnp.arange(20, 26)
    tokens, position = tiny.with_picture(module, words[None]), 3
    images = tiny.images(1)

    def probe(embedding, images):
        decoder = params["decoder"] | {"embedding": embedding}
        x, _ = module.apply({"params": params | {"decoder": decoder}}, tokens, images)
        return (x[0, position - len(words)] ** 2).sum()

    rows, pixels = jax.jit(jax.grad(probe, argnums=(0, 1)))(params["decoder"]["embedding"], images)
    assert [bool(jnp.abs(row).sum() > 0) for row in rows[words]] == [i <= position for i in range(len(words))]
    assert jnp.abs(pixels).sum() > 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_and_company_never_change_an_answer(family):
    module, params = tiny.model(family)
    text = tiny.with_picture(module, tiny.tokens(1, 6))
    alone, _ = run(module, params, text, tiny.images(1))
    length = text.shape[1]
    for left, right in ((3, 0), (0, 3), (2, 1)):
        padded = jnp.pad(text, ((0, 1), (left, right)), constant_values=7)  # and a second row of another length
        real = jnp.pad(jnp.ones_like(text), ((0, 0), (left, right)))
        real = jnp.concatenate([real, jnp.ones_like(real)])
        x, _ = run(module, params, padded, tiny.images(2), segment_ids=real)
        close(x[0, left : left + length], alone[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_packed_samples_and_isolated_turns_are_as_alone(family):
    module, params = tiny.model(family)
    a, b, shared = tiny.tokens(1, 4, seed=1), tiny.tokens(1, 5, seed=2), tiny.tokens(1, 3, seed=3)
    rows = [a, b, jnp.concatenate([shared, a], axis=1), jnp.concatenate([shared, b], axis=1)]
    # One program for all of them: what follows a token does not reach it, as the test above shows.
    alone, _ = run(module, params, jnp.concatenate([jnp.pad(t, ((0, 0), (0, 8 - t.shape[1]))) for t in rows]))
    alone = [x[: t.shape[1]] for x, t in zip(alone, rows, strict=True)]
    packed = jnp.concatenate([a, b], axis=1)
    segments = jnp.array([[1] * 4 + [2] * 5])
    positions = jnp.array([[*range(4), *range(5)]])
    x, _ = run(module, params, packed, segment_ids=segments, positions=positions)
    close(x[0], jnp.concatenate(alone[:2]))

    row = jnp.concatenate([shared, a, b], axis=1)
    turns = jnp.array([[0] * 3 + [1] * 4 + [2] * 5])
    positions = jnp.array([[*range(3), *range(3, 7), *range(3, 8)]])
    x, _ = run(module, params, row, turn_ids=turns, positions=positions)
    close(x[0], jnp.concatenate([alone[2], alone[3][3:]]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_decoding_equals_its_definition(family):
    """Two passes where the prompt is and one where the answer is, as one run over both without any cache.

    A gate that is shut for the answer's tokens is that definition: their states are those of the first pass, and what
    a later first pass attends to, here as in the cache, is what first passes made.
    """
    module, params = tiny.model(family)
    prompt, images = tiny.with_picture(module, tiny.tokens(1, 5)), tiny.images(1)
    ones = jnp.ones_like(prompt)
    answers, _ = generate(module, params, prompt, images=images, segment_ids=ones, max_new_tokens=5, stop=())
    given = jnp.concatenate([prompt, answers[:, :-1]], axis=1)
    length = prompt.shape[1]

    x, out = run(module, params, prompt, images, segment_ids=ones)
    cache, states = Cache.from_prompt(out["kv"], ones != 0, length + 4), [x]
    for i in range(4):
        x, out = run(module, params, answers[:, i : i + 1], cache=cache)
        cache = out["cache"]
        states.append(x)

    prompt_only = with_options(module, tokens="prompt")
    answer = jnp.arange(given.shape[1])[None] >= length
    defined, out = run(prompt_only, params, given, images, loss_mask=answer)
    assert (out["gate"][..., length:] == 0).all() and (out["gate"][..., :length] > 0).all()
    close(jnp.concatenate(states, axis=1), defined)
    logits = module.apply({"params": params}, defined[:, length - 1 :], method="logits")
    np.testing.assert_array_equal(logits.argmax(-1), answers)


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_passes_change_prompts_but_not_single_tokens(passes):
    module, params = tiny.model("phi3", passes=passes)
    _, out = jax.eval_shape(functools.partial(run, module), params, tiny.tokens(2, 5))
    assert out["gate"].shape == (2, passes - 1, 2, 5)
    _, out = jax.eval_shape(functools.partial(run, module), params, tiny.tokens(2, 1))
    assert out["gate"].shape == (2, 0, 2, 1)


def test_recomputation_changes_no_gradient():
    module, params = tiny.model("internlm2")
    tokens, images = tiny.with_picture(module, tiny.tokens(2, 4)), tiny.images(2)
    loss = lambda m: jax.jit(jax.grad(lambda p: (m.apply({"params": p}, tokens, images)[0] ** 2).mean()))  # noqa: E731
    kept = loss(module)(params)
    for remat in set(REMAT_POLICIES) - {"none"}:
        again = loss(dataclasses.replace(module, remat=remat))(params)
        jax.tree.map(lambda a, b: close(a, b, 1e-4), kept, again)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bfloat16_compute(family):
    module, params = tiny.model(family)
    tokens, images = tiny.with_picture(module, tiny.tokens(2, 5)), tiny.images(2)
    full, _ = run(module, params, tokens, images)
    half, out = run(dataclasses.replace(module, dtype=jnp.bfloat16), params, tokens, images)
    assert half.dtype == jnp.bfloat16 and out["kv"][0].dtype == jnp.bfloat16 and out["gate"].dtype == jnp.float32
    assert np.abs(half.astype(jnp.float32) - full).mean() < 0.05 * np.abs(full).mean() + 0.05


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_prompts_may_be_padded_on_either_side(family):
    """Answers go behind the last token of each row, so that rows of any length share a cache without gaps."""
    module, params = tiny.model(family)
    prompts = [tiny.tokens(1, length, seed=seed)[0] for seed, length in enumerate((3, 6, 3))]
    options = dict(max_new_tokens=5, stop=())
    alone = [
        generate(module, params, prompt[None], jnp.ones((1, len(prompt)), int), **options)[0] for prompt in prompts
    ]
    for side in (0, 1):
        pad = [((8 - len(prompt), 0), (0, 8 - len(prompt)))[side] for prompt in prompts]
        rows = jnp.stack([jnp.pad(prompt, each) for prompt, each in zip(prompts, pad, strict=True)])
        real = jnp.stack([jnp.pad(jnp.ones_like(prompt), each) for prompt, each in zip(prompts, pad, strict=True)])
        answers, _ = generate(module, params, rows, real, **options)
        np.testing.assert_array_equal(answers, jnp.concatenate(alone))
