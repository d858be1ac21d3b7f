"""What a partitioned program computes and sends, read from XLA's text of it right after the SPMD partitioner.

There the dtypes are still those of the model and each collective stands once, as the partitioner put it. XLA's final
text of a CPU has float32 in place of bfloat16, and that of a TPU has collectives in pieces. Loops are multiplied by
their counts, which XLA's own cost analysis leaves out.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16,
    "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
# Bytes that a device sends for each byte of the whole array, in a ring of n.
WIRE = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
CALLS = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as written: `bf16[2,64]{1,0}`, or several in parentheses
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # all that follows the operands

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from: `jit(step)/jvp(TroL)/decoder/...`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Of one instruction. size: bytes of the whole array on the devices of a group together, for each launch (of a
    reduction: of what is summed).
    """

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which it goes; ("?",) where groups are of no axes
    group: int  # devices that take part together
    size: int
    launches: int  # of a step
    loops: tuple[int, ...]  # counts of the loops around it, from the outermost
    shape: str
    place: str
    invariant: bool  # it is in a loop that does not change what it sends
    cut: int  # of so many parts of a sum each device keeps one
    apart: bool = False  # it is only added to another sum over the same devices, which could be one with it

    @property
    def wire(self) -> float:
        """Bytes that a device sends in a step, in rings."""
        return self.launches * self.size * WIRE[self.kind](self.group)


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product or convolution, of one device."""

    flops: int  # of a launch
    size: int  # bytes that a launch reads and writes
    launches: int
    place: str


class Program:
    """computations: name -> instructions by name, in order; entry: name of the first that runs."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            # Before optimisation computations are written without signatures.
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (found := _instruction(line)):
                for operand in found.operands:
                    if "#" in operand and operand not in current:
                        current[operand] = _element(operand, current)
                current[found.name] = found
        if not self.entry:
            raise ValueError("the text has no ENTRY computation of HLO")

    @functools.cached_property
    def loops(self) -> dict[str, list[tuple[int, ...]]]:
        """Computation -> for each way in which it is reached, the counts of the loops around it."""
        found = collections.defaultdict(list)

        def visit(name: str, around: tuple[int, ...]) -> None:
            found[name].append(around)
            for each in self.computations[name].values():
                if each.opcode == "while":
                    visit(re.search(r"body=%?([\w.\-]+)", each.attributes)[1], (*around, self.trips(each)))
                    continue
                branches = re.search(r"branch_computations=\{([^}]*)\}", each.attributes)
                names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
                for called in (*names, *CALLS.findall(each.attributes)):
                    visit(called, around)

        visit(self.entry, ())
        return dict(found)

    def trips(self, loop: Instruction) -> int:
        """How often a `while` runs; 1 where it is not a constant, as for a loop that ends by what it computes."""
        if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.attributes):
            return int(known[1])
        condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]
        counts = [int(each.operands[0]) for each in condition.values() if _is_count(each)]
        return max(counts, default=1)

    def reached(self) -> Iterator[tuple[str, Instruction, tuple[int, ...]]]:
        """(computation, instruction, counts of the loops around it), once for each way."""
        for name, ways in self.loops.items():
            for each, around in itertools.product(self.computations[name].values(), ways):
                yield name, each, around

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """mesh: sizes by axis, in the order in which the devices are numbered. Those that send most come first.

        Two of the same array, as two uses of a weight make them, are one: XLA merges them after the partitioner.
        """
        found, seen = [], set()
        for name, each, around in self.reached():
            kind = each.opcode.removesuffix("-start")
            if kind not in WIRE:
                continue
            unnamed = _unnamed(each.attributes)
            if (again := (name, around, kind, each.operands, unnamed)) in seen:
                continue
            seen.add(again)
            groups = _groups(each.attributes)
            group = 2 if kind == "collective-permute" else len(groups[0])
            if group < 2:
                continue
            own = self.computations[name]
            operands = sum(nbytes(own[operand].shape) for operand in each.operands if operand in own)
            cut = self._cut(name, each) if kind == "all-reduce" else 1
            if cut == group:  # the partitioner writes a sum, of which each takes its part; XLA makes it one
                kind, cut = "reduce-scatter", 1
            size = operands * group if kind == "all-gather" else operands
            place, axes = each.op_name, _axes(groups, mesh)
            still = around[-1:] > (1,) and self._invariant[name].issuperset(each.operands)
            launches, apart = math.prod(around), each.name in self._apart[name]
            found.append(Collective(kind, axes, group, size, launches, around, each.shape, place, still, cut, apart))
        return sorted(found, key=lambda each: -each.wire)

    @functools.cached_property
    def _invariant(self) -> dict[str, set[str]]:
        """By computation: what, as the body of a loop, it makes of that alone which it passes on as it came."""
        found = {}
        for name, own in self.computations.items():
            root = list(own.values())[-1]
            elements = ((i, own[operand]) for i, operand in enumerate(root.operands) if operand in own)
            kept = {i for i, each in elements if each.opcode == "get-tuple-element" and _index(each) == i}
            mine = found[name] = set()
            for each in own.values():  # operands come first
                if each.opcode == "get-tuple-element" and own[each.operands[0]].opcode == "parameter":
                    is_still = _index(each) in kept
                elif each.opcode in ("constant", "iota"):
                    is_still = True
                else:
                    is_still = each.opcode not in ("parameter", "partition-id") and mine.issuperset(each.operands)
                if is_still:
                    mine.add(each.name)
        return found

    def _cut(self, computation: str, each: Instruction) -> int:
        """Of how many parts of what an instruction makes a device uses one; 1 = all of it."""
        users = self._users[computation].get(each.name, [])
        while len(users) == 1 and users[0].opcode in ("convert", "copy", "reshape", "bitcast"):
            users = self._users[computation].get(users[0].name, [])
        whole = elements(each.shape)
        parts = {whole // max(elements(u.shape), 1) if u.opcode == "dynamic-slice" else 1 for u in users}
        return parts.pop() if len(parts) == 1 else 1

    @functools.cached_property
    def _apart(self) -> dict[str, set[str]]:
        """By computation: of sums over the same devices that are only added to each other, all but the first."""
        found = {}
        for name, own in self.computations.items():
            mine, users = found.setdefault(name, set()), self._users[name]

            def parts(total: Instruction, own=own, users=users) -> Iterator[Instruction]:
                for each in (own[operand] for operand in total.operands if operand in own):
                    if len(users[each.name]) == 1:
                        yield from parts(each) if each.opcode == "add" else (each,)

            for total in own.values():
                later = users.get(total.name, [])
                if total.opcode == "add" and not (len(later) == 1 and later[0].opcode == "add"):
                    sums = collections.defaultdict(list)
                    for each in parts(total):
                        if each.opcode == "all-reduce":
                            sums[_unnamed(each.attributes)].append(each.name)
                    mine.update(*(names[1:] for names in sums.values()))
        return found

    @functools.cached_property
    def _users(self) -> dict[str, dict[str, list[Instruction]]]:
        found = {}
        for name, instructions in self.computations.items():
            mine = found[name] = collections.defaultdict(list)
            for each in instructions.values():
                for operand in each.operands:
                    mine[operand].append(each)
        return found

    def products(self) -> list[Product]:
        found = []
        for name, each, around in self.reached():
            if each.opcode in ("dot", "convolution"):
                shapes = [self.computations[name][operand].shape for operand in each.operands]
                size = sum(map(nbytes, (*shapes, each.shape)))
                found.append(Product(_flops(each, *shapes), size, math.prod(around), each.op_name))
        return found


def flops(products: list[Product]) -> int:
    """Of products, of one device, in a step."""
    return sum(each.flops * each.launches for each in products)


def digest(found: list[Collective]) -> str:
    """Of what is sent: it stays while a change of the code leaves communication alone, whatever places are called."""
    lines = sorted(f"{c.kind} {','.join(c.axes)} {c.group} {c.size} {c.launches}" for c in found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- pieces of the text
def dims(shape: str) -> list[tuple[str, list[int]]]:
    """`(bf16[2,64]{1,0}, s32[])` -> [("bf16", [2, 64]), ("s32", [])]."""
    found = re.findall(r"\b(\w+)\[([\d,]*)\]", shape)
    return [(kind, [int(size) for size in sizes.split(",") if size]) for kind, sizes in found if kind in BITS]


def nbytes(shape: str) -> int:
    return sum(math.ceil(math.prod(sizes) * BITS[kind] / 8) for kind, sizes in dims(shape))


def elements(shape: str) -> int:
    return sum(math.prod(sizes) for _, sizes in dims(shape))


def _unnamed(attributes: str) -> str:
    """Of a collective, without what only names it."""
    return re.sub(r"channel_id=\d+, |, metadata=.*|to_apply=[^,]*", "", attributes)


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    shape, rest = _balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = (part.strip() for part in rest.lstrip().split("(", 1))
    inside, attributes = _balanced(f"({rest}")
    operands = re.findall(r"%([\w.\-#]+)", inside) or [each.strip() for each in inside[1:-1].split(",")]
    return Instruction(name.removeprefix("%"), shape, opcode, tuple(operands), attributes)


def _element(name: str, known: Mapping[str, Instruction]) -> Instruction:
    """Newer versions write `%x#1` for element 1 of the tuple x; here it is the instruction that takes it."""
    whole, _, index = name.partition("#")
    inside, depth, parts = re.sub(r"/\*.*?\*/", "", known[whole].shape)[1:-1], 0, [""]
    for letter in inside:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return Instruction(name, parts[int(index)].strip(), "get-tuple-element", (whole,), f", index={index}")


def _balanced(text: str) -> tuple[str, str]:
    """Text that begins with a parenthesis, parted behind the one that closes it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"a parenthesis of this line of HLO is not closed: {text[:80]}")


def _index(each: Instruction) -> int:
    return int(re.search(r"index=(\d+)", each.attributes)[1])


def _is_count(each: Instruction) -> bool:
    return each.opcode == "constant" and each.shape.startswith("s32[]") and each.operands[0].isdecimal()


def _groups(attributes: str) -> list[list[int]]:
    """Numbers of the devices of each group; of a permutation, of each pair."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return [[int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return [[int(number) for number in each.split(",")] for each in re.findall(r"\{([\d,]+)\}", listed[1])]
    if grid := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", grid[1])}
        numbers = _iota(*grid[2].split("T")) if grid[2] else range(math.prod(sizes.values()))
        return _along(sizes, numbers, re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", grid[3]))
    found = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\])(?:T(\([\d,]+\)))?", attributes)
    if not found:
        raise ValueError(f"replica groups of a form that is not known: {attributes[:200]}")
    numbers, columns = _iota(found[3], found[4]), int(found[2])
    return [numbers[start : start + columns] for start in range(0, len(numbers), columns)]


def _iota(sizes: str, order: str | None = None) -> list[int]:
    """`[2,4]` and `(1,0)` -> 0, 4, 1, 5, ...: numbers counted over a grid, read with its axes in another order."""
    lengths = [int(size) for size in re.findall(r"\d+", sizes)]
    axes = [int(axis) for axis in re.findall(r"\d+", order)] if order else range(len(lengths))
    strides = [math.prod(lengths[i + 1 :]) for i in range(len(lengths))]
    places = itertools.product(*(range(lengths[axis]) for axis in axes))
    return [sum(strides[axis] * place for axis, place in zip(axes, each, strict=True)) for each in places]


def _along(sizes: Mapping[str, int], numbers, named: list[tuple[str, str, str]]) -> list[list[int]]:
    """Devices of a grid that differ along the named axes alone, or along a part of one: (axis, before it, its size)."""
    strides, groups = _strides(sizes), collections.defaultdict(list)
    for place, number in enumerate(numbers):
        for name, before, size in named:
            stride, length = strides[name], sizes[name]
            if size:
                stride, length = stride * length // (int(before) * int(size)), int(size)
            place -= place // stride % length * stride
        groups[place].append(number)
    return list(groups.values())


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a group differ; ("?",) where they are not all devices along these."""
    varied = set()
    for group in groups:
        for name, stride in _strides(mesh).items():
            if len({number // stride % mesh[name] for number in group}) > 1:
                varied.add(name)
    axes = tuple(name for name in mesh if name in varied)
    is_pairs = all(len(group) == 2 for group in groups)
    return axes if is_pairs or math.prod(mesh[name] for name in axes) == len(groups[0]) else ("?",)


def _strides(mesh: Mapping[str, int]) -> dict[str, int]:
    sizes = list(mesh.values())
    return {name: math.prod(sizes[i + 1 :]) for i, name in enumerate(mesh)}


def _flops(each: Instruction, left: str, right: str) -> int:
    (_, out), (_, lhs), (_, rhs) = (dims(shape)[0] for shape in (each.shape, left, right))
    if each.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
        summed = math.prod(lhs[int(axis)] for axis in contracted[1].split(",") if axis) if contracted else 1
        return 2 * math.prod(out) * summed
    kernel = re.search(r"dim_labels=\w+_(\w+)->", each.attributes)[1]
    return 2 * math.prod(out) * math.prod(rhs) // rhs[kernel.index("o")]
