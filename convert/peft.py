"""The low-rank pairs of a run as a folder that PEFT loads into the released PyTorch model: adapter_config.json and
adapter_model.safetensors, as https://huggingface.co/docs/peft describes them.

A released matrix W [out, in] becomes W + alpha / r * lora_B @ lora_A, of [out, r] and [r, in].
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import engine, files
from trol_jax import checkpoint, saved
from trol_jax.errors import UserError
from trol_jax.models import kernels
from trol_jax.train import parameters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Adapter:
    """The pairs of a run, by the released matrices that they belong to. UserError for a run without any."""

    def __init__(self, path: Path, dtype: np.dtype | None = None):
        self.step_dir, self.dtype = checkpoint.resolve(path), dtype or np.dtype(np.float32)
        here = saved.read(self.step_dir)
        stored = checkpoint.arrays_in(self.step_dir, checkpoint.PARAMS)
        self.adapted = {
            name.removesuffix(parameters.A) + "kernel" for name in stored if name.endswith(f"/{parameters.A}")
        }
        if not self.adapted:
            raise UserError(f"{self.step_dir} has no low-rank pairs; write the whole model with --to=hf")
        self.lora, self.base = here.settings.lora, here.base.path
        self.others = [name for name in stored if not name.endswith((f"/{parameters.A}", f"/{parameters.B}"))]
        found = parameters.treatments(here.settings.parameters, list(engine.shapes_of(here.model)))
        self.quantized = sorted({found[name].quantized for name in self.adapted} - {""})
        layout = next(each for each in engine.LAYOUTS if each.family == here.model.family and each.has_gate)
        moves = engine.moves(layout.rules, engine.shapes_of(here.model))
        # Matrices that are fused there have a pair of each part, side by side.
        parts = [[each for each in move.rule.ours if each in self.adapted] for move in moves]
        self.moves = [(move, ours) for move, ours in zip(moves, parts, strict=True) if ours]

    def config(self) -> dict:
        """It names no base: ours is no folder that PEFT could load, and it takes the model that it is given."""
        rank, alpha = self.lora.rank, self.lora.alpha
        targets = {_module(move.rule.released[0]).split("{i}.")[-1]: len(ours) for move, ours in self.moves}
        return {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
            "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
            "use_rslora": False, "use_dora": False, "init_lora_weights": True, "modules_to_save": None,
            "target_modules": sorted(targets),
            "rank_pattern": {name: parts * rank for name, parts in targets.items() if parts > 1},
            "alpha_pattern": {name: parts * alpha for name, parts in targets.items() if parts > 1},
        }  # fmt: skip

    def tensors(self) -> dict[str, tuple[tuple[int, int], np.dtype]]:
        """Shape and dtype by name."""
        found = {}
        for move, ours in self.moves:
            ((n_out, n_in),) = move.released
            rank = self.lora.rank * len(ours)
            for (name,) in move.names:
                a, b = _names(name)
                found |= {a: ((rank, n_in), self.dtype), b: ((n_out, rank), self.dtype)}
        return found

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for move, ours in self.moves:
            stems = {name: checkpoint.PARAMS + name.removesuffix("kernel") for name in ours}
            stores = {
                name: [checkpoint.open_array(self.step_dir, stem + end) for end in (parameters.A, parameters.B)]
                for name, stem in stems.items()
            }
            for layer, (name,) in enumerate(move.names):
                pairs = {each: [half[layer].read().result() for half in pair] for each, pair in stores.items()}
                a, b = _names(name)
                yield a, np.concatenate([half.reshape(-1, self.lora.rank).T for half, _ in pairs.values()])
                yield b, np.concatenate([_outputs(move, each, half) for each, (_, half) in pairs.items()], axis=1)


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _names(name: str) -> list[str]:
    return [f"base_model.model.{_module(name)}.lora_{half}.weight" for half in "AB"]


def _outputs(move: engine.Move, name: str, half: np.ndarray) -> np.ndarray:
    """[R, *out], the second half of the pair of one of ours -> [out, R] of the released matrix, by its own rule."""
    halves = []
    for each, shape in zip(move.rule.ours, move.ours, strict=True):
        inputs = kernels.inputs(each)
        shape = (len(half), *(1,) * (inputs - 1), *shape[inputs:])  # the rank in place of the input
        halves.append(half.reshape(shape) if each == name else np.zeros(shape, half.dtype))
    return move.rule.transform.to_torch(halves)[0]


def to_peft(
    path: Path, folder: Path, dtype: np.dtype | None = None, progress: engine.Progress = lambda done, total: None
) -> str:
    """Run (or a step of it) -> folder, which appears when it is whole. Returns a line about what it holds."""
    adapter = Adapter(path, dtype)
    checkpoint.refuse_inside(folder)
    tensors = adapter.tensors()
    total = sum(math.prod(shape) * kind.itemsize for shape, kind in tensors.values())
    with files.new_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(adapter.config(), indent=2) + "\n")
        with files.Writer(temporary / WEIGHTS, tensors) as weights:
            for name, array in adapter.arrays():
                weights.write(name, array)
                progress(array.size * adapter.dtype.itemsize, total)
    if adapter.others:
        logging.warning(
            "the run trained %s too, of which a PEFT adapter says nothing: launch.merge and --to=hf write them",
            files.some(adapter.others),
        )
    if adapter.quantized:
        logging.warning(
            "the pairs were trained beside kernels in %s: with others, also the released ones that these were made of, "
            "the model is not quite the one that was trained, which launch.merge and --to=hf write",
            " and ".join(adapter.quantized),
        )
    return f"{len(tensors):,} matrices for {adapter.base}"


def describe(path: Path, dtype: np.dtype | None = None) -> str:
    """What `to_peft` would write, a line a matrix."""
    adapter = Adapter(path, dtype)
    lines, total = [], 0
    for name, (shape, kind) in adapter.tensors().items():
        size = math.prod(shape) * kind.itemsize
        total += size
        lines.append(f"{name}  {kind}{list(shape)}  {size:,} bytes")
    return "\n".join([*lines, f"{len(lines):,} matrices, {total:,} bytes; nothing was written"])
