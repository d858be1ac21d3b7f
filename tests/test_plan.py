"""The planner: what it counts equals what is counted by hand."""

import dataclasses
import importlib.metadata
import json

import jax
import jax.numpy as jnp
import pytest

import programs
import tiny
from programs import Program
from test_train import error_line
from trol_jax.errors import UserError
from trol_jax.models.variants import VARIANTS
from trol_jax.ops.losses import next_token_loss
from trol_jax.sharding import cost, hlo, mesh, plan, report, rules, strategy, targets
from trol_jax.sharding.strategy import Strategy

MESHES = {
    "replicated": "data=8",
    "data": "data=8",
    "fsdp": "fsdp=8",
    "tensor": "data=2,tensor=4",
    "fsdp_tensor": "fsdp=4,tensor=2",
    "sequence": "fsdp=2,sequence=2,tensor=2",
}
# A change of these is one of what devices send each other: look at it, then write the new one here.
DIGESTS = {  # of jaxlib 0.10.2
    "replicated": "e3b0c44298fc1c14",
    "data": "e3b0c44298fc1c14",
    "fsdp": "e1ec56f3dc7c6013",
    "tensor": "2314a8949190b193",
    "fsdp_tensor": "c14fc316d6a9ead8",
    "sequence": "c4ef798b92cda658",
    "train 1": "8222a42a0f82d3ed",
    "train 2": "880165ac48499bd3",
}
LENGTH = 1030  # three pieces of the loss


# ---------------------------------------------------------------------- eight devices, in a process of their own
def study() -> None:
    """Prints, for each case, what its program on eight devices computes, holds and sends."""
    config = tiny.config("internlm2")
    VARIANTS["even"] = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, kv_heads=4))
    plan.prepare(8)
    ways = {each: Strategy("even", "prefill", MESHES[each], each, 8, 32, pictures=0) for each in MESHES}
    for passes in (1, 2):
        ways[f"train {passes}"] = Strategy(
            "even", "train", "fsdp=8", "fsdp", 8, LENGTH, remat="none", passes=passes
        )  # fmt: skip
    print(json.dumps({name: counts(s) for name, s in ways.items()}))


def counts(s: Strategy) -> dict:
    layout = rules.Layout.make(mesh.make_mesh(s.mesh), s.rules)
    built = strategy.build(s, layout)
    traced = built.function.trace(*built.inputs)
    text, memory = plan._compiled(traced, 8)
    program = hlo.Program(text)
    collectives = program.collectives(dict(layout.mesh.shape))
    return {
        "digest": hlo.digest(collectives),
        "collectives": [dataclasses.asdict(each) | {"wire": each.wire} for each in collectives],
        "traced": cost.traced(traced.jaxpr), "partitioned": hlo.flops(program.products()),
        "arguments": memory.argument_size_in_bytes,
        "held": {name: cost.device_bytes(part) for name, part in built.parts.items()},
    }  # fmt: skip


@pytest.fixture(scope="module")
def studied():
    status, out, err = Program("import test_plan; test_plan.study()").wait()
    assert status == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def wire(found: dict, kind: str, place: str = "", loops: tuple = (2,), axes: tuple | None = None) -> float:
    return sum(
        each["wire"]
        for each in found["collectives"]
        if (each["kind"], tuple(each["loops"])) == (kind, loops)
        and place in each["place"]
        and (axes is None or tuple(each["axes"]) == axes)
    )


# Numbers of one layer's kernels and low-rank pairs: width 32, 4 heads of 8 (and as many of keys), 48 hidden, rank 8.
KERNELS = 32 * 96 + 32 * 32 + 3 * 32 * 48 + 8 * (32 + 96 + 32 + 32 + 3 * (32 + 48))
BF16, LAYERS = 2, 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replicated", "data"])
def test_whole_parameters_send_nothing_in_a_prompt(studied, name):
    assert studied[name]["collectives"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts", "tensor"), [("fsdp", 8, 1), ("fsdp_tensor", 4, 2), ("sequence", 4, 2)])
def test_a_layer_is_gathered_once_for_both_passes(studied, name, parts, tensor):
    """Of a pair, the half that lies along heads or hidden units is cut over `tensor` too; the rank is not."""
    whole = 5 * 8 * 32  # lora_a of qkv, gate and up, lora_b of out and down: they have neither heads nor hidden units
    gathered = (KERNELS - whole) / tensor + whole
    weights = sum(wire(studied[name], "all-gather", part) for part in ("qkv/", "out/", "gate/", "up/", "down/"))
    assert weights == LAYERS * BF16 * gathered * (parts - 1) / parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "tokens", "tensor"), [("tensor", 4, 32, 4), ("fsdp_tensor", 2, 32, 2), ("sequence", 4, 16, 2)]
)
def test_tensor_sums_what_leaves_attention_and_mlp(studied, name, rows, tokens, tensor):
    """Two sums of the width in each pass of each layer, and two of the rank of the low-rank pairs."""
    summed = 2 * LAYERS * 2 * rows * tokens * (32 + 8) * BF16
    assert wire(studied[name], "all-reduce", axes=("tensor",)) == summed * 2 * (tensor - 1) / tensor


@pytest.mark.slow
def test_passes_share_gathers_and_sums(studied):
    """Also the gradients of both passes are summed before they are reduced, and the loss gathers the head once."""
    once, twice = studied["train 1"], studied["train 2"]
    whole = LAYERS * BF16 * KERNELS * 7 / 8
    assert wire(once, "all-gather") == wire(twice, "all-gather") == 2 * whole  # forward and backward
    assert wire(once, "reduce-scatter") == wire(twice, "reduce-scatter") == whole
    assert not [each for each in twice["collectives"] if each["loops"] == [3] and each["size"] >= 32 * tiny.VOCAB]
    head = [each for each in twice["collectives"] if each["size"] == 32 * tiny.VOCAB * BF16]
    assert {(each["kind"], each["launches"]) for each in head} >= {("all-gather", 1), ("reduce-scatter", 1)}


@pytest.mark.slow
def test_flops_and_bytes_of_the_partitioned_program(studied):
    """Over `tensor`, halves of low-rank pairs without heads or hidden units are computed by each of its devices, and so
    is the gate.
    """
    tokens, whole = 8 * 32, 2 * 5 * 32 * 8
    head = 8 * 2 * 32 * tiny.VOCAB  # of the last token of each row, which lies on one part of its tokens
    twice = LAYERS * tokens * (2 * whole + 2 * 32)
    for name, found in studied.items():
        again = {"replicated": 7 * found["traced"], "tensor": 3 * twice, "fsdp_tensor": twice, "sequence": twice + head}
        assert found["partitioned"] * 8 == found["traced"] + again.get(name, 0), name
    held = studied["train 2"]["held"]
    assert studied["train 2"]["arguments"] == held["parameters"] + held["optimiser"] + held["batch"] + 4  # the step


@pytest.mark.slow
def test_what_is_sent_stays(studied):
    if importlib.metadata.version("jaxlib") != "0.10.2":
        pytest.skip("another partitioner may send otherwise")
    assert {name: found["digest"] for name, found in studied.items()} == DIGESTS


# ---------------------------------------------------------------------- one device
def test_the_closed_formula_is_within_a_percent():
    s = Strategy("trol_1_8b", "train", "data=1", "replicated", batch=2, length=2049, remat="none")
    layout = rules.Layout.make(mesh.make_mesh("data=1", jax.devices()[:1]), "replicated")
    built = strategy.build(s, layout)
    row = cost.forward(s.config, 2049, 1, 2049, 2, head_tokens=2048).total(2)
    formula = 2 * (3 * row + cost.loss_again(s.config, 2049))
    assert cost.traced(built.function.trace(*built.inputs).jaxpr) == pytest.approx(formula, rel=0.001)


@pytest.mark.parametrize("head_is_trained", [False, True])
def test_a_loss_in_pieces_asks_for_what_a_whole_one_does(head_is_trained):
    config, tokens = tiny.config("phi3"), 1300
    width, vocab = config.decoder.width, config.decoder.vocab
    x, head, ids = (jnp.zeros(shape) for shape in ((1, tokens, width), (width, vocab), (1, tokens)))

    def traced(chunk):
        loss = lambda x, head: next_token_loss(x, head, ids.astype(int), ids == 0, chunk)[0]  # noqa: E731
        return cost.traced(jax.make_jaxpr(jax.grad(loss, (0, 1) if head_is_trained else 0))(x, head))

    asked = (2 + head_is_trained) * 2 * (tokens - 1) * width * vocab
    assert traced(512) - cost.loss_again(config, tokens) == traced(tokens) == asked


def test_traced_flops_count_scans_and_branches():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))

    def f(x, w):
        x = jax.lax.scan(lambda h, _: (h @ w, None), x, length=5)[0]
        return jax.lax.cond(x.sum() > 0, lambda y: y @ w @ w, lambda y: y @ w, x)

    one = 2 * 4 * 8 * 8
    assert cost.traced(jax.make_jaxpr(f)(x, w)) == 7 * one
    assert cost.traced(jax.make_jaxpr(jax.grad(lambda x, w: (x @ w).sum(), (0, 1)))(x, w)) == 3 * one


def test_bytes_of_a_device_count_packed_numbers():
    assert cost.device_bytes({"a": jnp.zeros((3, 5)), "b": jnp.zeros(9, jnp.uint4)}) == 60 + 5


def seconds(target: str, wire: float, *axes: str, **sizes: int) -> float:
    return targets.get_target(target).seconds(wire, axes, sizes)


def test_rings_of_a_torus():
    link = targets.CHIPS["v5e"].link
    assert seconds("v5e-256", 2 * link, "fsdp", fsdp=256, tensor=1) == 1
    assert seconds("v5e-256", link, "fsdp", fsdp=16, tensor=16) == 1
    assert seconds("v5e-256", link, "tensor", fsdp=16, tensor=16) == 1
    assert seconds("v5e-16", link, "fsdp", fsdp=16) == 1  # sides of 4 are not closed
    assert (targets.get_target("v5p-128").devices, targets.get_target("v5p-128").torus) == (64, (4, 4, 4))


def test_an_axis_takes_the_side_of_its_size():
    """Of 4 x 8 x 8, as JAX lays meshes."""
    link, target = targets.CHIPS["v5p"].link, targets.get_target("v5p-512")
    assert target._sides({"fsdp": 64, "tensor": 4}) == {"tensor": {0: link}, "fsdp": {1: link, 2: link}}
    assert target._sides({"fsdp": 32, "tensor": 8}) == {"tensor": {1: link}, "fsdp": {0: link, 2: link}}
    halves = {"tensor": {0: link / 2}, "fsdp": {0: link / 2, 1: link, 2: link}}  # of a side: no ring
    assert target._sides({"fsdp": 128, "tensor": 2}) == halves


def test_a_side_may_be_cut():
    """As the README's mesh over 16 x 16 does."""
    chips = [targets._Device(i, (i // 16, i % 16, 0), "TPU v5 lite") for i in range(256)]
    grid = mesh.make_mesh("fsdp=64,tensor=4", chips).devices
    assert [chip.coords for chip in grid[0, 0, 0]] == [(i, 0, 0) for i in range(4)]


def test_rings_over_hosts_use_the_network_of_each_gpu_of_a_group():
    assert seconds("h100x16", 50e9, "data", data=2, fsdp=8) == 1  # one of a group in each host: one NIC
    assert seconds("h100x16", 450e9, "fsdp", data=2, fsdp=8) == 1
    assert seconds("h100x16", 400e9, "data", "fsdp", data=2, fsdp=8) == 1  # eight of them
    assert seconds("h100x16", 400e9, "fsdp", fsdp=16) == 1
    assert seconds("h100x16", 100e9, "fsdp", fsdp=4, tensor=4) == 1
    assert seconds("h100x8", 450e9, "fsdp", "tensor", fsdp=4, tensor=2) == 1


def test_what_shares_a_link_adds_up():
    sizes = {"data": 2, "fsdp": 4, "tensor": 2}
    target, link = targets.get_target("h100x16"), 450e9
    assert target.loads(link, ("fsdp",), sizes) == target.loads(link, ("tensor",), sizes) == {"fsdp and tensor": 1}
    assert target.loads(50e9, ("data",), sizes) == {"data": 1}
    slice_, link = targets.get_target("v5e-256"), targets.CHIPS["v5e"].link
    assert slice_.loads(2 * link, ("fsdp", "tensor"), {"fsdp": 16, "tensor": 16}) == {"fsdp": 1, "tensor": 1}
    # Two of the side of eight: both axes send over it.
    assert slice_.loads(link, ("tensor",), {"fsdp": 128, "tensor": 2}).keys() == {"fsdp and tensor"}


@pytest.mark.parametrize("name", ["v5e-12", "h100x12", "v5p-6", "tpu", "a100x0"])
def test_targets_that_are_not_known(name):
    with pytest.raises(UserError, match=f"target '{name}'"):
        targets.get_target(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sleep"}, "task 'sleep' is not known"),
        ({"remat": "all"}, "remat 'all' is not known"),
        ({"batch": 0}, "batch is 0"),
        ({"accumulation": 3}, "batch 8 is not divisible by accumulation 3"),
        ({"pictures": 9}, "9 pictures are 11025 tokens of trol_7b"),
        ({"pictures": 0}, "pictures is 0"),
        ({"variant": "trol_9b"}, "model 'trol_9b' is not known"),
    ],
)
def test_strategies_that_cannot_be(change, message):
    good = Strategy("trol_7b", "train", "fsdp=8", "fsdp", batch=8, length=2048)
    with pytest.raises(UserError, match=message):
        strategy.check(dataclasses.replace(good, **change))


def test_places_are_short():
    name = "jit(train_step)/transpose(jvp(TroL))/decoder/while/body/closed_call/layers/block/qkv/dot_general"
    assert plan.place(name) == "decoder/block/qkv/dot_general, backward"


FLAGS = (
    "--variant=nano_phi3",
    "--target=h100x8",
    "--mesh=fsdp=4,tensor=2",
    "--task=decode",
    "--batch=8",
    "--length=32",
)


def test_the_program_ranks_strategies(tmp_path):
    files = tmp_path / "plan.json", tmp_path / "plan.html"
    more = ("--rules=fsdp,fsdp_tensor", f"--json={files[0]}", f"--html={files[1]}")
    status, out, err = Program(programs.launch("plan"), *FLAGS, *more).wait()
    assert status == 0, err
    assert "left out, fsdp=4,tensor=2 fsdp: sharding rules 'fsdp' put nothing on the mesh axis tensor=2" in out
    assert "predicted, not measured" in out
    (found,) = json.loads(files[0].read_text())
    held = found["memory"]
    assert held["peak"] == sum(size for name, size in held.items() if name != "peak") and held["outputs"] > 0
    assert found["largest_batch"] > 8 and found["capacity"] == int(0.95 * 84942979072)
    assert found["fits"] and found["flops"]["traversal"] == 0 and found["memory"]["cache"] > 0
    assert found["seconds"].keys() >= {"arithmetic", "memory", "network fsdp and tensor"}
    assert "<table>" in files[1].read_text() and (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--json=/nonexistent/a.json"],
            "--json=/nonexistent/a.json cannot be written; give a file in a folder that is",
        ),
        (["--html=a.png"], "--html=a.png is the name of its charts; give one that ends in .html"),
        (["--target=v9"], "target 'v9' is not known"),
        (["--rules=zero"], "sharding rules 'zero' are not known; choose one of replicated"),
        (["--mesh=fsdp=3"], "mesh 'fsdp=3' is of 3 devices, there are 8; change a size, or make one -1"),
    ],
)
def test_flags_that_cannot_work_are_named(flags, message):
    own = [flag for flag in (*FLAGS, "--rules=fsdp_tensor") if flag.split("=")[0] != flags[0].split("=")[0]]
    assert message in error_line(Program(programs.launch("plan"), *own, *flags).wait())


def test_a_fault_in_one_strategy_leaves_the_others(tmp_path):
    """Which are written as soon as they are planned: an interrupt comes after the second."""
    code = f"""
from trol_jax.sharding import plan
true = plan.plan
def faulty(s, target):
    if s.mesh == "tensor=8":
        raise KeyboardInterrupt(2)
    if s.mesh == "fsdp=8":
        raise RuntimeError("a fault")
    return true(s, target)
plan.plan = faulty
{programs.launch("plan")}"""
    flags = [flag for flag in FLAGS if "--mesh" not in flag] + ["--mesh=fsdp=8", FLAGS[2], "--mesh=tensor=8"]
    file = tmp_path / "plan.json"
    status, out, err = Program(code, *flags, "--rules=fsdp_tensor", f"--json={file}").wait()
    assert "2 of 3: fsdp=4,tensor=2 fsdp_tensor none: fits, " in err
    assert status == 130 and "left out, fsdp=8 fsdp_tensor none: a fault of the program, RuntimeError: a fault" in out
    assert [each["strategy"]["mesh"] for each in json.loads(file.read_text())] == ["fsdp=4,tensor=2"]


def test_reports_are_ranked_and_compared():
    s = Strategy("trol_7b", "train", "fsdp=8", "fsdp", batch=8, length=2048)
    flops = {"first pass": 10**12, "traversal": 10**12, "recomputed": 10**12, "all": 3 * 10**12, "device": 10**12}
    traffic = [plan.Traffic("all-gather", ("fsdp",), 2, 10, 2.0**30, 2.0, (("decoder/qkv", 2, 2.0**30),))]
    one = plan.Report(
        s, "h100x8", 8, {"data": 1, "fsdp": 8}, {"parameters": 2**30, "peak": 2**31}, 80 * 10**9, flops, traffic, "d",
        {"arithmetic": 1.0, "memory": 0.5, "network fsdp": 2.0}, ["!"], {"seconds": 1.0, "bytes": 1.0},
    )  # fmt: skip
    faster = dataclasses.replace(
        one, seconds=one.seconds | {"network fsdp": 0.5}, traffic=[dataclasses.replace(traffic[0], seconds=0.5)]
    )
    large = dataclasses.replace(faster, memory={"peak": 10**12})
    assert plan.ranked([large, one, faster]) == [faster, one, large]
    assert (one.bound, one.fastest, one.slowest) == ("network fsdp", 2.0, 3.0)
    assert "what is sent along fsdp" in plan.knob(one) and "recomputed" in plan.knob(faster)
    assert "does not fit" in plan.knob(large)
    assert "network fsdp: 2000 -> 500 ms" in report.difference(one, faster)
    assert report.to_json(one)["mfu"] == pytest.approx(2e12 / (2 * 8 * 989e12))


def test_what_fits_is_what_the_compiler_says():
    s = Strategy("trol_7b", "prefill", "fsdp=8", "fsdp", batch=8, length=2048)
    memory = {"parameters": 10, "batch": 10, "temporaries": 40, "outputs": 20, "peak": 80}
    sizes = {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    r = plan.Report(s, "v5e-8", 8, sizes, memory, 150, {}, [], "d", {}, [], {})
    assert r.fits and r.largest_batch == 16  # 70 bytes of 8 rows, their outputs among them, and 140 to be had
    told = lambda **said: dataclasses.replace(r, compiled=said)  # noqa: E731
    assert told(fits=True, peak=150).largest_batch == 8 and not told(fits=False, peak=151).fits
    refused = told(fits=False, message="out of memory")
    assert not refused.fits and refused.largest_batch == 0


@pytest.mark.parametrize(
    ("target", "mesh_", "batch", "told"),
    [("h100x2", "tensor=2", 8, 0.037), ("v5e-4", "tensor=4", 288, 0.111)],  # GiB, by the compilers of these
)
def test_temporaries_of_decoding_are_about_those_of_the_target(target, mesh_, batch, told):
    target = targets.get_target(target)
    s = Strategy("trol_1_8b", "decode", mesh_, "tensor", batch, 2048)
    layout = rules.Layout.make(mesh.make_mesh(mesh_, jax.devices()[: target.devices]), "tensor")
    assert plan._of_a_token(s, layout, target) / targets.GIB == pytest.approx(told, rel=0.1)


def test_undivided_axes_are_told_each_time():
    for _ in range(2):
        with plan._Undivided() as told:
            rules.logging.getLogger(rules.__name__).warning("sharding: heads of 3 does not divide")
        assert told.messages == ["heads of 3 does not divide"]


def test_flash_attention_moves_no_logits():
    s = Strategy("tiny_phi3", "train", "data=1", "replicated", batch=1, length=40, remat="none", passes=1)
    built = strategy.build(s, rules.Layout.make(mesh.make_mesh(s.mesh, jax.devices()[:1]), s.rules))
    text, _ = plan._compiled(built.function.trace(*built.inputs), 1)
    products = hlo.Program(text).products()
    # Of queries and keys in decoder and tower: two products forward and four backward, in each of three layers.
    flops = [2 * 2 * size**2 * 32 for size in (40, 65)]
    of_logits = [each for each in products if each.flops in flops]
    assert sum(each.launches for each in of_logits) == 2 * 3 * 6
    xla, flash = (plan._moved(dataclasses.replace(s, attention=name), built, products) for name in ("xla", "flash"))
    assert xla - flash == sum(each.size * each.launches for each in of_logits) > 0


def test_one_device_is_planned_too():
    s = Strategy("tiny_phi3", "prefill", "data=1", "replicated", batch=1, length=40)
    found = plan.plan(s, targets.get_target("v5e-1"))
    assert found.flops["device"] == found.flops["all"] > 0 and not found.traffic
