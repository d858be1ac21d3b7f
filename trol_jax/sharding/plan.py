"""What a strategy takes, without the devices: memory, FLOPs, what is sent, and how long a step is at least.

The program is compiled for simulated devices of this machine's CPU, and read as the SPMD partitioner leaves it. Times
are those of peaks that makers publish. Nothing is measured.
"""

import collections
import dataclasses
import functools
import logging
import math
import resource
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from trol_jax.errors import UserError
from trol_jax.sharding import cost, hlo, mesh, rules
from trol_jax.sharding.strategy import Built, Strategy, build
from trol_jax.sharding.targets import GIB, Target, get_target

LOGITS = "BNTS"  # in the name of each product of `jax.nn.dot_product_attention` that makes or takes logits
MANY = 0.02  # of a step's bytes or FLOPs, from which on something is told of
DUMP = {
    "xla_dump_hlo_pass_re": "spmd-partitioning",
    "xla_dump_hlo_as_text": True,
    # The CPU's own code is never run.
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
LEFT_OUT = (
    "predicted, not measured: published peaks, rings at full rate, attention counted in full (also what a mask hides); "
    "temporaries are those of the CPU's compiler, which has no flash attention, and of decoding those of its largest "
    "arrays; kernels, latencies, input and the host are left out"
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same axes, of one device and step."""

    kind: str
    axes: tuple[str, ...]
    launches: int
    size: int  # bytes of the largest launch, of the whole array
    wire: float  # bytes that a device sends
    seconds: float
    places: tuple[tuple[str, int, float], ...]  # those that send most: (place, launches, bytes)


@dataclasses.dataclass(frozen=True)
class Report:
    strategy: Strategy
    target: str
    devices: int
    sizes: dict[str, int]  # of the mesh
    # Bytes of one device. parameters, ... and outputs: exact; temporaries: of the CPU's compiler; peak: their sum
    memory: dict[str, int]
    capacity: int
    # FLOPs of all devices in a step, as traced; `device`: of one, as partitioned.
    flops: dict[str, int]  # first pass, traversal, recomputed, all, device
    traffic: list[Traffic]
    digest: str
    seconds: dict[str, float]  # arithmetic, memory, and `network AXES` of each link: the axes that share it
    flags: list[str]
    took: dict[str, float]  # the planner itself: seconds, bytes
    compiled: dict[str, Any] | None = None  # what `verdict` says

    @property
    def fits(self) -> bool:
        return self.memory["peak"] <= self.capacity if self.compiled is None else self.compiled["fits"]

    @property
    def largest_batch(self) -> int:
        """Rows that are estimated to fit, in steps that the mesh can cut; 0 where none do."""
        s, held = self.strategy, self.memory
        fixed = sum(held.get(name, 0) for name in ("parameters", "optimiser", "gradients"))
        peak = held["peak"]
        if self.compiled is not None:
            peak = self.compiled.get("peak", peak)
        # As if all beside these grew with the rows.
        rows = (self.capacity - fixed) / max(peak - fixed, 1) * s.batch
        step = s.accumulation * math.prod(self.sizes[axis] for axis in rules.table(s.rules)["batch"])
        rows = max(rows, s.batch) if self.fits else min(rows, s.batch - 1)
        return max(0, int(rows // step * step))

    @property
    def bound(self) -> str:
        return max(self.seconds, key=self.seconds.get)

    @property
    def fastest(self) -> float:
        """Seconds of a step where everything overlaps."""
        return max(self.seconds.values())

    @property
    def slowest(self) -> float:
        """Seconds of a step where nothing that is sent overlaps with what is computed."""
        return max(self.seconds["arithmetic"], self.seconds["memory"]) + sum(each.seconds for each in self.traffic)

    @property
    def tokens_per_second(self) -> float:
        return self.strategy.tokens / self.fastest

    @property
    def mfu(self) -> float:
        """Of the fastest step; all passes count, what is recomputed does not."""
        useful = self.flops["first pass"] + self.flops["traversal"]
        return useful / (self.fastest * self.devices * get_target(self.target).chip.flops)

    @property
    def wire(self) -> float:
        return sum(each.wire for each in self.traffic)


# ---------------------------------------------------------------------- the study
def prepare(devices: int) -> None:
    """Makes this process one of so many simulated devices, before JAX begins any; UserError if it is too late."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        pass  # told below, where there are too few
    jax.config.update("jax_enable_compilation_cache", False)  # a program that is found there is not partitioned again
    if len(jax.devices()) < devices:
        raise UserError(
            f"{devices} devices are to be simulated, and this process has begun with {len(jax.devices())}; plan in one "
            f"of its own, with XLA_FLAGS and JAX_NUM_CPU_DEVICES unset"
        )


def plan(s: Strategy, target: Target) -> Report:
    """UserError where the strategy cannot be built. `prepare` comes first, with at least the target's devices."""
    start, undivided = time.monotonic(), _Undivided()
    with undivided:
        layout = rules.Layout.make(mesh.make_mesh(s.mesh, jax.devices()[: target.devices]), s.rules)
        built = build(s, layout)
        traced = built.function.trace(*built.inputs)
        text, memory = _compiled(traced, target.devices)
    sizes, program = dict(layout.mesh.shape), hlo.Program(text)
    collectives, products = program.collectives(sizes), program.products()
    flops = _flops(s, cost.traced(traced.jaxpr)) | {"device": hlo.flops(products)}
    held = _memory(built, memory, _of_a_token(s, layout, target) if s.task == "decode" else None)
    traffic = _traffic(collectives, sizes, target)
    seconds = {
        "arithmetic": flops["device"] / target.chip.flops,
        "memory": _moved(s, built, products) / target.chip.bandwidth,
    }
    for each in traffic:  # what shares a link goes one after the other
        for link, busy in target.loads(each.wire, each.axes, sizes).items():
            seconds[f"network {link}"] = seconds.get(f"network {link}", 0.0) + busy
    flags = [*_amplifiers(s, built, collectives, flops, target.devices), *undivided.messages]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    took = {"seconds": time.monotonic() - start, "bytes": peak}
    return Report(
        s, target.name, target.devices, sizes, held, int(target.chip.memory), flops, traffic, hlo.digest(collectives),
        seconds, flags, took,
    )  # fmt: skip


def ranked(reports: Iterable[Report]) -> list[Report]:
    """Best first: those that fit, then tokens a second, then what is left when nothing overlaps."""
    return sorted(reports, key=lambda r: (not r.fits, -round(r.tokens_per_second, 3), r.slowest / r.strategy.tokens))


def _compiled(traced, devices: int) -> tuple[str, Any]:
    """(the text of the partitioned program, what the CPU's compiler says of memory)."""
    # For one device there is nothing to partition.
    written = "after_spmd-partitioning" if devices > 1 else "before_optimizations"
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        compiled = traced.lower().compile(compiler_options=DUMP | {"xla_dump_to": folder})
        found = sorted(Path(folder).glob(f"*{written}*.txt"))
        if not found:
            raise RuntimeError("XLA wrote no partitioned program; its compilation cache must be off")
        return found[-1].read_text(), compiled.memory_analysis()


def _flops(s: Strategy, total: int) -> dict[str, int]:
    alone = dataclasses.replace(s, mesh="data=1", rules="replicated", remat="none" if s.trains else s.remat)
    if s.task == "decode":  # a generated token takes one pass
        return {"first pass": total, "traversal": 0, "recomputed": 0, "all": total}
    kept, once = _traced_alone(alone), _traced_alone(dataclasses.replace(alone, passes=1))
    again = s.batch * cost.loss_again(s.config, s.length) if s.trains else 0
    return {"first pass": once - again, "traversal": kept - once, "recomputed": total - kept + again, "all": total}


@functools.lru_cache(64)
def _traced_alone(s: Strategy) -> int:
    built = build(s, rules.Layout.make(mesh.make_mesh(s.mesh, jax.devices()[:1]), s.rules))
    return cost.traced(built.function.trace(*built.inputs).jaxpr)


# ---------------------------------------------------------------------- memory
def _memory(built: Built, compiled, temporaries: int | None) -> dict[str, int]:
    exact = {name: cost.device_bytes(part) for name, part in built.parts.items()}
    if temporaries is None:
        temporaries = compiled.temp_size_in_bytes - exact.get("gradients", 0)
    outputs = compiled.output_size_in_bytes - compiled.alias_size_in_bytes
    held = exact | {"temporaries": temporaries, "outputs": outputs}
    return held | {"peak": sum(held.values())}


def _of_a_token(s: Strategy, layout: rules.Layout, target: Target) -> int:
    """Temporaries of decoding, about. The CPU's compiler copies all weights and the cache to float32 first, which no
    target does: a hundred times what the rest takes.
    """
    c = s.config.decoder
    made = {"act_vocab": c.vocab, "act_mlp": 2 * c.hidden, "act_embed": c.width}
    made = [(("batch", name), (s.batch, size)) for name, size in made.items()]
    made.append((("batch", "act_heads", "slots"), (s.batch, c.heads, s.length)))
    numbers = (layout.sharding(*each, parameter=False).shard_shape(each[1]) for each in made)
    # Each in float32 as a product leaves it and as it is masked or scaled, and in bfloat16 as it goes on.
    return sum(map(math.prod, numbers)) * (4 + 4 + 2) + target.chip.workspace


def _moved(s: Strategy, built: Built, products: Sequence[hlo.Product]) -> int:
    """Bytes that products read and write, and the optimiser; all else is taken to be fused into these."""
    if s.attention == "flash":
        products = [each for each in products if LOGITS not in each.place]
    of_optimiser = 0
    if "optimiser" in built.parts:
        of_optimiser = 2 * sum(cost.device_bytes(built.parts[name]) for name in ("optimiser", "gradients", "gradients"))
    return sum(each.size * each.launches for each in products) + of_optimiser


# ---------------------------------------------------------------------- what is sent
def _traffic(collectives: Sequence[hlo.Collective], sizes: dict[str, int], target: Target) -> list[Traffic]:
    groups = collections.defaultdict(list)
    for each in collectives:
        groups[each.kind, each.axes].append(each)
    found = []
    for (kind, axes), mine in groups.items():
        places = collections.defaultdict(lambda: [0, 0.0])
        for each in mine:
            entry = places[place(each.place)]
            entry[0] += each.launches
            entry[1] += each.wire
        most = sorted(places.items(), key=lambda item: -item[1][1])[:8]
        wire = sum(each.wire for each in mine)
        launches, size = sum(each.launches for each in mine), max(each.size for each in mine)
        seconds = target.seconds(wire, axes, sizes)
        found.append(Traffic(kind, axes, launches, size, wire, seconds, tuple((name, *of) for name, of in most)))
    return sorted(found, key=lambda each: -each.wire)


def place(op_name: str) -> str:
    """`jit(train_step)/transpose(jvp(TroL))/decoder/while/body/.../qkv/dot_general` -> `decoder/.../qkv, backward`."""
    backward = ", backward" if "transpose(" in op_name else ""
    idle = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "layers", "TroL")
    parts = [part for part in op_name.split("/") if "(" not in part and part not in idle]
    return ("/".join(parts[-4:]) or op_name.split("/")[-1] or "(no place)") + backward


def _amplifiers(s: Strategy, built: Built, collectives, flops: dict[str, int], devices: int) -> list[str]:
    """What makes a strategy send, hold or compute more than it had to, in words."""
    total = sum(each.wire for each in collectives) or 1.0
    found = []

    def tell(mine: Sequence[hlo.Collective], text: str) -> None:
        wire = sum(each.wire for each in mine)
        if wire > MANY * total:
            where = ", ".join(dict.fromkeys(place(each.place) for each in mine[:3]))
            found.append(f"{text}: {wire / GIB:.3g} GiB a step, {wire / total:.0%} of what is sent ({where})")

    gathers = [each for each in collectives if each.kind == "all-gather" and each.invariant]
    tell(gathers, "gathered anew in a loop that does not change it, could be hoisted")
    of_micro = [each for each in collectives if s.accumulation > 1 and each.loops[:1] == (s.accumulation,)]
    reduced = [each for each in of_micro if "reduce" in each.kind and "transpose(" in each.place]
    tell(reduced, f"gradients reduced once for each of {s.accumulation} micro-batches, not once a step")
    gathered = [each for each in of_micro if each.kind == "all-gather"]
    tell(gathered, f"weights gathered once for each of {s.accumulation} micro-batches")
    summed = [each for each in collectives if each.cut > 1]
    tell(summed, "summed in full by each device, which then keeps a part: scattered over one axis first it sends less")
    tell([each for each in collectives if each.apart], "summed apart and then added: added first, it is one sum")
    moved = [each for each in collectives if each.kind in ("all-to-all", "collective-permute")]
    tell(moved, "moved from one layout to another, as the rules of two operations differ")
    more = flops["device"] * devices / max(flops["all"], 1) - 1
    if more > MANY:
        found.append(f"computed by more than one device, or padded: {more:.0%} more FLOPs than the program has")
    weights = {name: part for name, part in built.parts.items() if name in ("parameters", "optimiser", "cache")}
    whole = cost.replicated(weights)
    if whole:
        size = sum(each for _, each in whole)
        found.append(f"held whole by every device: {size / GIB:.3g} GiB in {len(whole)} arrays ({whole[0][0]}, ...)")
    return found


class _Undivided(logging.Handler):
    """Collects what the rules tell of axes that do not divide."""

    def __init__(self):
        super().__init__()
        self.messages: list[str] = []
        self.logger = logging.getLogger(rules.__name__)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage().removeprefix("sharding: "))

    def __enter__(self):
        for memory in (rules._say, rules._spec):  # they tell of each axis once in a process
            memory.cache_clear()
        self.propagates, self.logger.propagate = self.logger.propagate, False
        self.logger.addHandler(self)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.propagate = self.propagates


# ---------------------------------------------------------------------- which knob moves the bound
def knob(r: Report) -> str:
    """What to turn, in words."""
    s = r.strategy
    if not r.fits:
        ways = ["fewer rows"] + (["more micro-batches", "another remat"] if s.trains else [])
        return f"it does not fit: {', '.join(ways)}, or rules and a mesh that cut parameters over more devices"
    if r.bound == "arithmetic":
        share = r.flops["recomputed"] / r.flops["all"]
        more = f"; {share:.0%} of the FLOPs are recomputed, a remat that keeps more saves them" if share > MANY else ""
        return f"arithmetic: the devices are at work all the time{more}"
    if r.bound == "memory":
        return "reading and writing memory: more rows a device share each read of the weights"
    axes = r.bound.removeprefix("network ")
    return f"what is sent along {axes}: more rows a device, or fewer devices on {axes}"
