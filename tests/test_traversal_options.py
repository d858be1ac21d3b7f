"""What studies change of traversal, by definition; and that nothing changes where they change nothing."""

import hashlib
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from test_traversal import close, run, with_options
from trol_jax.errors import UserError
from trol_jax.infer.decoding import GREEDY
from trol_jax.infer.engine import Engine
from trol_jax.infer.generate import generate
from trol_jax.infer.server import Request, Server
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL
from trol_jax.models.variants import with_traversal
from trol_jax.ops.traversal import MIXES, Traversal, check, gate_score, score, traverse, traversed
from trol_jax.train.step import answer_sums

# Of the programs as they were before there were options (training with its gradient, answering), jaxlib 0.10.2.
LOWERED = {
    ("internlm2",): ("3af234d5fc9903d7", "1b8ce409a46f6f37"),
    ("phi3", "shared_gate", False): ("d95898733f01f0a5", "c5c95887b34faa31"),
    ("internlm2", "passes", 3): ("8da2bb5a80c29be9", "5e263391b9cd98c3"),
}
SLOW = [pytest.param(key, marks=pytest.mark.slow) for key in list(LOWERED)[1:]]


@pytest.mark.skipif(importlib.metadata.version("jaxlib") != "0.10.2", reason="programs are written otherwise")
@pytest.mark.parametrize("key", [*list(LOWERED)[:1], *SLOW])
def test_without_options_programs_are_the_released_ones(key):
    family, *changed = key
    module, params = tiny.model(family, **dict([changed] if changed else []))
    digest = lambda lowered: hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]  # noqa: E731
    tokens = jax.ShapeDtypeStruct((2, 12), jnp.int32)
    batch = dict.fromkeys(("tokens", "positions", "segment_ids", "turn_ids"), tokens)
    batch["loss_mask"] = jax.ShapeDtypeStruct((2, 12), bool)
    batch["images"] = jax.ShapeDtypeStruct((2, 1, 16, 16, 3), jnp.uint8)
    grad = jax.jit(jax.grad(lambda p, b: answer_sums(module, p, b, jax.random.key(0))["loss"][0]))
    found = (
        digest(grad.lower(params, batch)),
        digest(generate.lower(module, params, tokens, tokens, max_new_tokens=3, stop=(1,))),
    )
    assert found == LOWERED[key]


# ---------------------------------------------------------------------- formulas
X, W = jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (4, 4))
H = [X, jnp.tanh(X @ W), jnp.tanh(jnp.tanh(X @ W) @ W)]
H += [jnp.tanh(H[2] @ W)]


GATE = W[0], jnp.float32(0.3)


def mixed(passes=2, where=None, gate=GATE, **options):
    options = Traversal(**options)
    places = jnp.arange(6).reshape(2, 3)
    scored = lambda h, n: score(options, gate, h, n, (jax.random.key(7), places))  # noqa: E731
    y, scores = traverse(lambda h, n: jnp.tanh(h @ W), scored, X, passes, options.mix, where)
    return y, scores


def test_each_mix_is_its_formula():
    s = gate_score(H[1], *GATE)[..., None]
    close(mixed(mix="first")[0], (1 - s) * H[1])
    close(mixed(mix="second")[0], s * H[2])
    close(mixed(mix="uniform")[0], (H[1] + H[2]) / 2)
    close(mixed(3, mix="uniform")[0], sum(H[1:]) / 3)
    constant = 0.5 * np.tanh(0.3) + 0.5
    close(mixed(mix="constant")[0], (1 - constant) * H[1] + constant * H[2])
    y, drawn = mixed(3, mix="random")
    assert len(set(drawn.ravel().tolist())) == 12 and (drawn >= 0).all() and (drawn < 1).all()
    one, other = drawn[..., None]
    close(y, (1 - other) * ((1 - one) * H[1] + one * H[2]) + other * H[3])


def test_two_linear_gates_and_a_gate_for_each_pass():
    hidden = jax.nn.gelu(H[1] @ W + W[1])
    expected = gate_score(hidden, *GATE)
    close(score(Traversal(gate="two_linear"), (*GATE, W, W[1]), H[1], 1, None), expected)
    bias = jnp.array([0.3, -0.2])
    _, scores = mixed(3, gate=(W[:2], bias), gates=2)
    close(scores[0], gate_score(H[1], W[0], bias[0]))
    close(scores[1], gate_score(H[2], W[1], bias[1]))


def test_what_is_not_traversed_keeps_its_first_pass():
    where = jnp.array([[True, False, True], [False, False, True]])
    for mix in MIXES:
        (y, scores), (whole, _) = mixed(3, where, mix=mix), mixed(3, mix=mix)
        close(y[where], whole[where])
        close(y[~where], H[1][~where], 0)
        assert (scores[:, ~where] == 0).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", "1111"), ("first 1", "1000"), ("last 3", "0111"), ("every 2", "1010"), ("3 0", "1001"), ("2", "0010")],
)
def test_layers_by_name(text, expected):
    assert traversed(text, 4) == tuple(letter == "1" for letter in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": "gates"}, "mix is 'gates', must be one of gate, first, second, random, uniform, constant"),
        ({"gate": "mlp"}, "gate is 'mlp', must be one of linear, two_linear"),
        ({"tokens": "question"}, "tokens is 'question', must be one of all, prompt, image, text"),
        ({"gates": 2}, "gates is 2, must be 1, or 1 with 2 passes"),
        ({"answer_passes": -1}, "answer_passes is -1"),
        ({"decode": True, "tokens": "prompt"}, "decode is True, and tokens 'prompt' leaves out those"),
        *[({"layers": text}, f"layers is '{text}', must be all") for text in ("", "first", "first 0", "first 5", "4")],
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check(Traversal(**options), 2, 4)


def test_options_to_answer_by():
    config = with_traversal(tiny.config("phi3"), "answer_passes=1,layers=first 1,decode=true")
    assert config.traversal == Traversal(answer_passes=1, layers="first 1", decode=True)
    assert (config.prompt_passes, config.token_passes, config.passes) == (1, 1, 2)
    for text, message in [
        ("pass=1", "traversal 'pass=1' is not known; give NAME=VALUE of mix, gate, gates, tokens, layers,"),
        ("answer_passes=x", "traversal.answer_passes is 'x', must be of type int"),
        ("layers=first 3", "traversal.layers is 'first 3'"),
    ]:
        with pytest.raises(UserError, match=message):
            with_traversal(tiny.config("phi3"), text)


# ---------------------------------------------------------------------- models
def test_gates_have_the_shapes_of_their_options():
    for shared, layers in ((True, ()), (False, (2,))):
        config = tiny.config("phi3", shared_gate=shared, passes=3, traversal=Traversal(gate="two_linear", gates=2))
        module, params = TroL(config), tiny.draw(TroL(config))
        gate = {name: leaf.shape for name, leaf in params["decoder"].items() if name.startswith("gate_")}
        assert gate == {
            "gate_kernel": (*layers, 2, 32), "gate_bias": (*layers, 2),
            "gate_hidden_kernel": (*layers, 2, 32, 32), "gate_hidden_bias": (*layers, 2, 32),
        }  # fmt: skip
    _, out = jax.eval_shape(lambda: module.apply({"params": params}, tiny.tokens(2, 5)))
    assert out["gate"].shape == (2, 2, 2, 5)


def test_only_the_chosen_tokens_and_layers_are_traversed():
    module, params = tiny.model("internlm2")
    tokens = tiny.with_picture(module, tiny.tokens(2, 5))
    is_image = tokens == module.config.image_token
    first, second = jnp.array([1, 0])[:, None, None, None], jnp.array([0, 1])[:, None, None, None]
    gates = lambda **options: run(with_options(module, **options), params, tokens)[1]["gate"]  # noqa: E731
    np.testing.assert_array_equal(gates(tokens="image", layers="first 1") > 0, is_image & first)
    np.testing.assert_array_equal(gates(tokens="text", layers="1", mix="constant") > 0, ~is_image & second)


def test_answers_take_their_own_passes_and_training_its():
    module, params = tiny.model("phi3")
    tokens = tiny.tokens(2, 5)
    without, with_three = (with_options(module, answer_passes=passes) for passes in (1, 3))
    close(run(without, params, tokens)[0], run(module, params, tokens, passes=1)[0], 0)
    gate = lambda m, **how: jax.eval_shape(lambda: m.apply({"params": params}, tokens, **how))[1]["gate"].shape  # noqa: E731
    assert (gate(without)[1], gate(with_three)[1]) == (0, 2)
    assert gate(without, deterministic=False)[1] == 1


def test_decoding_with_all_passes_equals_one_run_over_everything():
    module, params = tiny.model("phi3")
    module, prompt = with_options(module, decode=True), tiny.tokens(2, 5)
    answers, _ = generate(module, params, prompt, jnp.ones_like(prompt), max_new_tokens=4, stop=())
    given = jnp.concatenate([prompt, answers[:, :-1]], axis=1)
    x, out = run(module, params, given)
    assert (out["gate"] > 0).all() and len(out["kv"]) == 4
    logits = module.apply({"params": params}, x[:, prompt.shape[1] - 1 :], method="logits")
    np.testing.assert_array_equal(logits.argmax(-1), answers)


@pytest.mark.slow
def test_decoding_with_all_passes_in_slots():
    module, params = tiny.model("internlm2", passes=3)
    module, prompt = with_options(module, decode=True, mix="random"), tiny.tokens(1, 5)
    options = dict(max_new_tokens=6, stop=())
    greedy, _ = generate(module, params, prompt, jnp.ones_like(prompt), **options)
    with Server(Engine(module, params, (), size=1)) as server:
        request = server.submit(Request(prompt[0].tolist(), None, 6, GREEDY))
        assert request.result() == greedy[0].tolist()
    slots = Engine(module, params, (), size=2, cache=jnp.dtype("int8")).start()
    assert len(slots.cache.kv) == 3 * 4  # of each pass keys, values and their scales


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "remat", "learned"),
    [
        ({"mix": "constant", "layers": "first 1"}, "layer", {"bias"}),
        ({"gate": "two_linear", "gates": 2}, "none", {"kernel", "bias", "hidden_kernel", "hidden_bias"}),
    ],
)
def test_only_what_an_option_uses_is_learned(options, remat, learned):
    config = tiny.config("phi3", shared_gate=False, passes=3, traversal=Traversal(**options))
    module = TroL(config, remat=remat)
    params, tokens = tiny.draw(module), tiny.tokens(2, 6)

    def loss(params):
        how = dict(loss_mask=jnp.arange(6)[None] > 3, deterministic=False, rngs={"dropout": jax.random.key(0)})
        return (module.apply({"params": params}, tokens, **how)[0] ** 2).mean()

    grads = jax.jit(jax.grad(loss))(params)
    moved = {name.removeprefix("gate_") for name, leaf in grads["decoder"].items() if "gate_" in name and leaf.any()}
    assert moved == learned


@pytest.mark.slow
def test_drawn_scores_are_those_of_positions_and_layers():
    module, params = tiny.model("phi3")
    module, text = with_options(module, mix="random"), tiny.tokens(1, 6)
    alone = run(module, params, text)[1]["gate"][:, 0, 0]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    padded = jnp.pad(text, ((1, 0), (3, 0)))
    real = jnp.pad(jnp.ones_like(text), ((1, 0), (3, 0)))
    close(run(module, params, padded, segment_ids=real)[1]["gate"][:, 0, 1, 3:], alone)
    separate = run(tiny.separate(module), unstack_layers(params), text)[1]["gate"]
    close(separate[:, 0, 0], alone)


def test_a_layer_that_is_not_traversed_leaves_its_second_pass_out():
    module, params = tiny.model("phi3")
    tokens = tiny.tokens(2, 6)
    branches = lambda module: run.lower(module, params, tokens).as_text().count("stablehlo.case")  # noqa: E731
    assert (branches(module), branches(with_options(module, layers="first 1"))) == (0, 1)


def test_unrolled_layers_that_are_not_traversed_are_not_in_the_program():
    module, params = tiny.model("phi3")
    module, params, tokens = tiny.separate(module), unstack_layers(params), tiny.tokens(2, 6)
    text = lambda module: run.lower(module, params, tokens).as_text()  # noqa: E731
    products = lambda **options: text(with_options(module, **options)).count("stablehlo.dot_general")  # noqa: E731
    all_layers, first, none = products(), products(layers="first 1"), products(answer_passes=1)
    assert all_layers - first == pytest.approx((all_layers - none) / 2, abs=1)
    assert "stablehlo.case" not in text(with_options(module, layers="first 1"))
    assert text(with_options(module, layers="0 1")) == text(module)
    scanned = run(with_options(tiny.model("phi3")[0], layers="first 1"), tiny.model("phi3")[1], tokens)
    close(run(with_options(module, layers="first 1"), params, tokens)[0], scanned[0])
