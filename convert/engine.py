"""The one engine that applies the rule tables, both ways, a tensor at a time."""

import dataclasses
import functools
import itertools
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert import clip, files, gate, hf_config, internlm2, phi3, tokenizer, torch_files
from convert.rules import Rule
from trol_jax import checkpoint, saved
from trol_jax.errors import UserError
from trol_jax.lazy import Lazy
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.models.variants import ModelConfig
from trol_jax.ops.traversal import RELEASED
from trol_jax.rows import assign

CONFIG = "config.json"
# Released files that are kept beside converted weights, and given back with them.
KEPT = (
    CONFIG, "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way of naming the tensors of a folder, known by one name that no other has."""

    name: str
    family: str
    mark: str
    rules: list[Rule]
    has_gate: bool


LAYOUTS = (
    Layout("TroL, InternLM2", "internlm2", "model.layers.0.attention.wqkv.ffn.weight", internlm2.RULES, True),
    Layout("TroL, Phi-3", "phi3", "vision_proj.3.weight", phi3.RULES, True),
    Layout("InternLM-XComposer2-VL", "internlm2", "model.layers.0.attention.wqkv.Plora_A.weight",
           internlm2.BASE_RULES, False),
    Layout("Mini-InternVL-Chat, Phi-3", "phi3", "mlp1.3.weight", phi3.BASE_RULES, False),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Move:
    """Some of our arrays and, by layer, the released tensors that they are made of."""

    rule: Rule
    names: list[list[str]]  # [layer][tensor]
    ours: list[tuple[int, ...]]  # shapes of one layer
    released: list[tuple[int, ...]]

    @property
    def is_gate(self) -> bool:
        return self.rule in gate.RULES

    def to_released(
        self, ours: list[np.ndarray], shared_gate: bool, first: int = 0
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """(layer, name, array) of each released tensor, from our arrays or their layers from `first` on."""
        if self.is_gate and shared_gate:
            ours = [np.broadcast_to(array, (len(self.names), *array.shape)) for array in ours]
        for i in range(len(ours[0]) if self.rule.by_layer else 1):
            mine = [array[i] for array in ours] if self.rule.by_layer else ours
            for name, array in zip(self.names[first + i], self.rule.transform.to_torch(mine), strict=True):
                yield first + i, name, array


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our shapes by path, with a gate for each layer."""
    model = TroL(dataclasses.replace(config, shared_gate=False))
    flat = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    return {path: tuple(array.shape) for path, array in flat.items()}


def moves(rules: list[Rule], ours: Mapping[str, tuple[int, ...]]) -> list[Move]:
    made = []
    for rule in rules:
        layers, mine, theirs = rule.shapes(ours)
        made.append(Move(rule, [rule.names(i) for i in range(layers)], mine, theirs))
    return made


def audit(plan: list[Move], stored: Mapping[str, files.Stored], ours: set[str], where: Path) -> None:
    """UserError with everything at once: tensors that are missing, unused, of a wrong shape or dtype."""
    problems, wanted = [], {}
    for move in plan:
        for names in move.names:
            wanted |= dict(zip(names, move.released, strict=True))
        dtypes = {stored[name].dtype for names in move.names for name in names if name in stored}
        if len(dtypes) > 1:
            kinds = ", ".join(sorted(map(str, dtypes)))
            problems.append(f"{move.rule.released[0]} has a different dtype in different layers: {kinds}")
        if any(dtype.kind not in "fV" for dtype in dtypes):
            problems.append(f"{move.rule.released[0]} is {dtypes.pop()}, not a floating-point type (is it quantised?)")
    if missing := sorted(set(wanted) - set(stored)):
        problems.append(f"missing: {files.some(missing)}")
    if unused := sorted(set(stored) - set(wanted)):
        problems.append(f"not known: {files.some(unused)}")
    for name, shape in wanted.items():
        if name in stored and stored[name].shape != shape:
            problems.append(f"{name} has shape {list(stored[name].shape)}, {CONFIG} asks for {list(shape)}")
    if orphans := sorted(ours - {path for move in plan for path in move.rule.ours}):
        problems.append(f"no rule makes: {files.some(orphans)}")
    if problems:
        raise UserError(f"{where} does not fit: {'; '.join(problems)}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A released folder, understood and checked; no tensor has been read yet."""

    folder: Path
    layout: Layout
    config: ModelConfig
    plan: list[Move]
    stored: Mapping[str, files.Stored]
    row_numbers: bool  # whether it holds the row numbers that older transformers stored

    @classmethod
    def open(cls, folder: Path) -> "Source":
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name one with {CONFIG} and weights")
        stored = files.read_tensors(folder)
        layout = next((layout for layout in LAYOUTS if layout.mark in stored), None)
        if layout is None:
            known = "; ".join(f"{layout.name}: {layout.mark}" for layout in LAYOUTS)
            raise UserError(f"{folder} has the tensors of no known model; looked for {known}")
        config = hf_config.read(files.read_json(folder / CONFIG), layout.family, str(folder / CONFIG))
        row_numbers = stored.pop(clip.ROW_NUMBERS, None) if layout.family == "internlm2" else None
        if row_numbers is not None:
            _require_row_numbers(row_numbers, config.vision.patches + 1)
        ours = shapes_of(config)
        plan = moves(layout.rules + (gate.RULES if layout.has_gate else []), ours)
        if layout.has_gate:
            gates = _gates(folder)
            if twice := sorted(gates.keys() & stored.keys()):
                raise UserError(f"{folder}: {files.some(twice)} stand in {gate.FILE} and among the weights too")
            stored |= gates
        made_here = set() if layout.has_gate else {path for rule in gate.RULES for path in rule.ours}
        audit(plan, stored, set(ours) - made_here, folder)
        config = dataclasses.replace(config, shared_gate=_shared(plan, stored))
        return cls(folder, layout, config, plan, stored, row_numbers is not None)

    def arrays(self, dtype: np.dtype | None, progress: Callable[[int, int], None]) -> dict[str, Lazy]:
        """Our arrays by path, each made when it is written. dtype: None = as they are."""
        made, total = {}, sum(math.prod(each.shape) * each.dtype.itemsize for each in self.stored.values())
        advance = lambda done: progress(done, total)  # noqa: E731
        for move in self.plan:
            kind = dtype or self.stored[move.names[0][0]].dtype
            for which, path in enumerate(move.rule.ours):
                blocks, shape = functools.partial(self._blocks, move, which, advance), move.ours[which]
                if move.rule.by_layer and not (move.is_gate and self.config.shared_gate):
                    shape = (len(move.names), *shape)
                made[path] = Lazy(shape, kind, blocks, move.names[0][0] if len(move.names) == 1 else path)
        if not self.layout.has_gate:
            made |= self._closed_gate(dtype)
        return made

    def _blocks(self, move: Move, which: int, advance) -> Iterator[np.ndarray]:
        """One of the arrays of a rule, a layer at a time where they are stacked."""
        copies = len(move.names) if move.is_gate and self.config.shared_gate else 1
        for names in move.names[::copies]:
            arrays = [self.stored[name].load() for name in names]
            one = move.rule.transform.to_jax(arrays, move.ours)[which]
            advance(one.nbytes * copies)
            yield one[None] if move.rule.by_layer and copies == 1 else one

    def _closed_gate(self, dtype) -> dict[str, Lazy]:
        """A fresh gate, as a new model has it: zeros, so that both passes count alike at first."""
        kind = dtype or next(iter(self.stored.values())).dtype
        shapes = {"decoder/gate_kernel": (self.config.decoder.width,), "decoder/gate_bias": ()}
        return {path: Lazy(shape, kind, lambda shape=shape: [np.zeros(shape, kind)]) for path, shape in shapes.items()}


def _gates(folder: Path) -> dict[str, files.Stored]:
    path = folder / gate.FILE
    if not path.is_file():
        raise UserError(f"{path} is missing; download the whole repository")
    return {name: files.Stored(a.shape, a.dtype, path, -1, a) for name, a in torch_files.read(path).items()}


def _shared(plan: list[Move], stored: Mapping[str, files.Stored]) -> bool:
    rules = [move for move in plan if move.is_gate]
    values = [[stored[name].load() for (name,) in move.names] for move in rules]
    return all(one.tobytes() == layers[0].tobytes() for layers in values for one in layers)


def _require_row_numbers(stored: files.Stored, rows: int) -> None:
    if (stored.shape, stored.dtype) != ((1, rows), np.int64) or not np.array_equal(stored.load()[0], np.arange(rows)):
        raise UserError(f"{clip.ROW_NUMBERS} in {stored.file} should count 0, 1, 2, ..., as int64[1, {rows}]")


Progress = Callable[[int, int], None]  # bytes done since the last call, bytes in all


def to_jax(
    folder: Path, directory: Path, dtype: np.dtype | None = None, progress: Progress = lambda done, total: None
) -> ModelConfig:
    """Released folder -> checkpoint of step 0 under `directory`. Returns the model's sizes.

    dtype: what to cast to; None = every tensor keeps its own.
    """
    source = Source.open(folder)
    if files.real(directory) == files.real(folder):
        raise UserError(f"--src and --dst are both {folder}; name another --dst")
    if checkpoint.steps_in(directory / checkpoint.CHECKPOINTS):
        raise UserError(f"{directory} holds checkpoints already; name another --dst, or remove it")
    # The config of a base does not describe what TroL makes of it: one is written on export.
    names = [name for name in KEPT if (folder / name).is_file()]
    for name in names:
        files.refuse_link_out(folder, name)
    kept = {name: (folder / name).read_bytes() for name in names}
    if not source.layout.has_gate:
        del kept[CONFIG]
    if source.row_numbers:
        kept[_ROWS] = b""
    words = tokenizer.read_tokenizer(folder) if any("tokenizer" in name for name in kept) else None
    if words is None:
        logging.warning("%s has no tokeniser: its weights are converted, and can answer nothing", folder)
    else:
        _compare(words, source.config)
    here = saved.Saved(source.config, words, None, kept)
    tree = {"params": unflatten_dict(source.arrays(dtype, progress), sep="/")}
    where = directory / checkpoint.CHECKPOINTS
    with files.new_folders(where), checkpoint.Checkpoints(where) as checkpoints:
        try:
            checkpoints.save(0, tree, data_state=None, config=None, files=here.files())
            checkpoints.wait()
        except BaseException:  # the user's interrupt may come when all but the last steps are done
            shutil.rmtree(where / "0", ignore_errors=True)
            raise
    return source.config


def _compare(words: tokenizer.Tokenizer, config: ModelConfig) -> None:
    if words.image_id != config.image_token or words.vocab_size > config.decoder.vocab:
        logging.warning(
            "tokeniser and weights do not belong together, and will answer nothing of use: they have %d and %d ids, %d "
            "and %d for a picture",
            words.vocab_size, config.decoder.vocab, words.image_id, config.image_token,
        )  # fmt: skip


_ROWS = "has_row_numbers"  # a mark among the kept files


@dataclasses.dataclass(frozen=True)
class Export:
    """A checkpoint of ours, and the released tensors that it makes."""

    step_dir: Path
    here: saved.Saved
    plan: list[Move]
    stored: Mapping[str, np.dtype]  # by path of ours
    dtypes: Mapping[str, np.dtype]  # what is written

    @classmethod
    def open(cls, path: Path, dtype: np.dtype | None = None) -> "Export":
        step_dir = checkpoint.resolve(path)
        here = saved.read_whole(step_dir)
        layout = next(layout for layout in LAYOUTS if layout.family == here.model.family and layout.has_gate)
        stored = {path: np.dtype(leaf.dtype) for path, leaf in checkpoint.arrays_in(step_dir, "params/").items()}
        dtypes = {path: dtype or own for path, own in stored.items()}
        return cls(step_dir, here, moves(layout.rules + gate.RULES, shapes_of(here.model)), stored, dtypes)

    def tensors(self, gates: bool) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the released tensors by name, of the gate's file or of the other."""
        return {
            name: (shape, self.dtypes[move.rule.ours[0]])
            for move in self.plan
            if move.is_gate == gates
            for names in move.names
            for name, shape in zip(names, move.released, strict=True)
        }

    def arrays(self) -> Iterator[tuple[Move, str, np.ndarray]]:
        """Every released tensor, with the move that makes it. The next part is read while one is in use."""
        coming = None
        for part in itertools.chain(self._parts(), [None]):
            ready, coming = coming, part and (*part[:2], [store.read() for store in part[2]])
            if ready:
                move, first, reads = ready
                ours = [read.result() for read in reads]
                for _, name, array in move.to_released(ours, self.here.model.shared_gate, first):
                    yield move, name, array

    def _parts(self) -> Iterator[tuple[Move, int, list]]:
        """(move, number of the first layer, our arrays from there), in parts that are stored together."""
        for move in self.plan:
            whole = [checkpoint.open_array(self.step_dir, f"params/{path}") for path in move.rule.ours]
            if move.is_gate or not move.rule.by_layer:
                yield move, 0, whole
                continue
            rows = max(store.chunk_layout.read_chunk.shape[0] for store in whole)
            for first in range(0, len(move.names), rows):
                yield move, first, [store[first : min(first + rows, len(move.names))] for store in whole]


def to_hf(
    path: Path, folder: Path, dtype: np.dtype | None = None, progress: Progress = lambda done, total: None
) -> ModelConfig:
    """Checkpoint -> folder in the released layout, which appears when it is whole."""
    export = Export.open(path, dtype)
    model = export.here.model
    checkpoint.refuse_inside(folder)
    if model.traversal != RELEASED:
        raise UserError(f"{path} has options of traversal that the original PyTorch code lacks: {model.traversal}")
    if not model.shared_gate:
        logging.warning("the gate differs by layer: the original PyTorch code loads only the last layer's")
    with files.new_folder(folder) as temporary:
        tensors = export.tensors(gates=False)
        released = dict(export.here.released)
        if released.pop(_ROWS, None) is not None:
            tensors[clip.ROW_NUMBERS] = ((1, model.vision.patches + 1), np.dtype(np.int64))
        gates, total = {}, sum(math.prod(shape) * kind.itemsize for shape, kind in tensors.values())
        with files.Writer(temporary / files.WEIGHTS[0], tensors) as weights:
            if clip.ROW_NUMBERS in tensors:
                weights.write(clip.ROW_NUMBERS, np.arange(model.vision.patches + 1)[None])
            for move, name, array in export.arrays():
                if move.is_gate:
                    gates[name] = np.empty(array.shape, export.dtypes[move.rule.ours[0]])
                    assign(gates[name], array, name)
                else:
                    weights.write(name, array)
                    progress(array.size * export.dtypes[move.rule.ours[0]].itemsize, total)
        torch_files.write(temporary / gate.FILE, dict(sorted(gates.items(), key=_by_layer)))
        released.setdefault(CONFIG, hf_config.write(model))
        if model.passes != 2:
            logging.warning("the model takes %d passes: the original PyTorch code takes two", model.passes)
            released[CONFIG] = hf_config.with_passes(released[CONFIG], model.passes)
        if export.here.tokenizer is not None and not any("tokenizer" in name for name in released):
            released[saved.TOKENIZER] = export.here.tokenizer.dump()
        for name, content in released.items():
            (temporary / name).write_bytes(content)
    return model


def _by_layer(item) -> tuple[int, bool]:
    layer, kind = item[0].split(".")
    return int(layer), kind == "bias"


def describe(to: str, src: Path, dtype: np.dtype | None = None) -> str:
    """What `to_jax` or `to_hf` would do, a line a released tensor: name, ours, shape, dtypes, bytes, transform."""
    arrow = "->" if to == "jax" else "<-"
    config, plan, kind, numbered = _plan_of(to, src, dtype)
    rows = config.vision.patches + 1 if numbered else 0
    lines, total = [], 0
    for move in plan:
        stacked = move.rule.by_layer and not (move.is_gate and config.shared_gate)
        for layer, names in enumerate(move.names):
            ours = ", ".join(path + (f"[{layer}]" if stacked else "") for path in move.rule.ours)
            for name, shape in zip(names, move.released, strict=True):
                here, there = kind(move, name)
                size = math.prod(shape) * there.itemsize
                total += size
                cast = "" if here == there else f" cast to {there}"
                lines.append(
                    f"{name} {arrow} {ours}  {here}{list(shape)}{cast}  {size:,} bytes  {move.rule.transform.name}"
                )
    fresh = [] if any(move.is_gate for move in plan) else ["a fresh gate -> decoder/gate_kernel, decoder/gate_bias"]
    if rows:
        lines.append(f"{clip.ROW_NUMBERS} {arrow} counted anew  int64[1, {rows}]  {8 * rows:,} bytes")
        total += 8 * rows
    return "\n".join([*lines, *fresh, f"{len(lines):,} tensors, {total:,} bytes; nothing was written"])


def _plan_of(to: str, src: Path, dtype: np.dtype | None):
    """(sizes, moves, a function of a move and a tensor's name: its dtype and the one that it gets, and whether the row
    numbers are among the released tensors).
    """
    if to == "jax":
        source = Source.open(src)
        stored = source.stored
        kind = lambda move, name: (stored[name].dtype, dtype or stored[name].dtype)  # noqa: E731
        return source.config, source.plan, kind, source.row_numbers
    export = Export.open(src, dtype)

    def kind(move, name):
        path = move.rule.ours[0]
        return export.stored[path], export.dtypes[path]

    return export.here.model, export.plan, kind, _ROWS in export.here.released
