"""Compares a released folder, converted in memory, with what the original computed from it.

The recording is an .npz; whatever of these keys it has is compared, in float32:
clip.orig_position_embedding -> resized_position_embedding; images_uint8 -> pixel_values -> vision_features ->
projected; CASE.input_ids, CASE.attention_mask (padding on the left) -> CASE.hidden.0..L (what enters each layer, then
the states after the final norm), CASE.k.i, CASE.v.i [B, K, T, H], CASE.logits; CASE.beamsN.prompt -> .tokens and, from
two beams on, .score; train.input_ids, train.attention_mask, train.labels -> train.loss, train.grad.NAME. Pictures are
those of pixel_values, given out to the rows in order by their image tokens.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert import engine, files
from trol_jax.errors import UserError
from trol_jax.infer.beam import beam_search
from trol_jax.infer.generate import generate
from trol_jax.models.trol import TroL
from trol_jax.ops.image import grow_position_table, normalize, pixel_shuffle
from trol_jax.ops.losses import next_token_loss

_OUTPUT = re.compile(
    r"resized_position_embedding|vision_features|projected|train\.(loss|grad\..+)|"
    r".+\.((hidden|k|v)\.\d+|logits|beams\d+\.(tokens|score))"
)
SIMPLE, COMPOSITE = 1e-5, 1e-4  # of the largest recorded value: one function, or a chain of layers


class Row(NamedTuple):
    what: str
    difference: float  # the largest, as a part of the largest recorded value
    tolerance: float
    layer: int | None = None

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


def check(folder: Path, recording: Path) -> list[Row]:
    """A row for each recorded array. UserError for a folder or recording that cannot be read."""
    source = engine.Source.open(folder)
    if not recording.is_file():
        raise UserError(f"--check: {recording} does not exist")
    try:
        with np.load(recording) as file:
            recorded = {name: file[name] for name in file.files}
            if strange := [name for name, array in recorded.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{strange[0]} is no array")
    except Exception as error:  # NumPy and zlib raise anything for damaged bytes, MemoryError for a damaged shape
        raise UserError(f"{recording} is not a readable .npz: {error}; record it again") from error
    try:
        rows = list(_Check(source, recorded).rows())
    except KeyError as error:
        raise UserError(f"{recording} lacks {error.args[0]}, which belongs to other keys that it has") from error
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{recording} does not hold arrays as described in convert/check.py: {error}") from error
    if not rows:
        raise UserError(f"{recording} holds none of the keys that are compared; see the top of convert/check.py")
    return rows


def table(rows: list[Row]) -> str:
    """The largest difference of every kind, the verdict, and the first layer that differs."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", row.what), []).append(row)
    width = max(map(len, groups))
    lines = [f"{'compared':<{width}}  {'arrays':>6}  {'largest':>9}  {'allowed':>9}"]
    for what, members in groups.items():
        worst = max(members, key=lambda row: np.nan_to_num(row.difference, nan=np.inf))
        verdict = "ok" if all(row.passed for row in members) else f"DIFFERS: {_first(members).what}"
        lines.append(
            f"{what:<{width}}  {len(members):>6}  {worst.difference:>9.1e}  {worst.tolerance:>9.0e}  {verdict}"
        )
    failed = [row for row in rows if not row.passed]
    layers = [row for row in failed if row.layer is not None]
    if layers:
        lines.append(f"the first layer that differs: {_first(layers).layer} ({_first(layers).what})")
    lines.append(f"{len(rows) - len(failed)} of {len(rows)} arrays agree")
    return "\n".join(lines)


def _first(rows: list[Row]) -> Row:
    return min((row for row in rows if not row.passed), key=lambda row: -1 if row.layer is None else row.layer)


class _Check:
    def __init__(self, source: engine.Source, recorded: Mapping[str, np.ndarray]):
        self.source, self.config, self.recorded, self.names = source, source.config, recorded, set(recorded)
        self.left = {name for name in self.names if _OUTPUT.fullmatch(name)}
        self.model = TroL(source.config)
        arrays = source.arrays(np.dtype(np.float32), lambda done, total: None)
        params = unflatten_dict({path: jnp.asarray(lazy.make()) for path, lazy in arrays.items()}, sep="/")
        self.params = {"params": params}

    def rows(self) -> Iterator[Row]:
        yield from self.pictures()
        cases = sorted({name.rsplit(".", 1)[0] for name in self.names if name.endswith(".input_ids")} - {"train"})
        if cases:
            yield from self.prompts(cases)
        found = [re.fullmatch(r"(.*\.beams(\d+))\.prompt", name) for name in self.names]
        generated = {(int(match[2]), match[1]) for match in found if match}
        for beams in sorted({beams for beams, _ in generated}):
            yield from self.generation(beams, sorted(case for n, case in generated if n == beams))
        if "train.labels" in self.names:
            yield from self.training()
        for name in sorted(self.left):
            yield Row(f"{name} (not of this model, or recorded without its inputs)", np.inf, COMPOSITE)

    def compare(self, name: str, mine, tolerance: float, where=..., layer: int | None = None) -> Iterator[Row]:
        if name in self.names:
            self.left.discard(name)
            expected, mine = self.recorded[name], np.asarray(mine)
            if expected.shape != mine.shape:
                raise UserError(f"{name} is {expected.shape} in the recording, and {mine.shape} of this model")
            expected, mine = expected[where], mine[where]
            largest = np.abs(expected).max()
            yield Row(name, float(np.abs(mine - expected).max() / (largest or 1)), tolerance, layer)

    # ------------------------------------------------------------------ pictures
    def pictures(self) -> Iterator[Row]:
        if "clip.orig_position_embedding" in self.names:
            side = round((len(self.recorded["resized_position_embedding"]) - 1) ** 0.5)
            grown = grow_position_table(jnp.asarray(self.recorded["clip.orig_position_embedding"]), side)
            yield from self.compare("resized_position_embedding", grown, SIMPLE)
        if "images_uint8" in self.names:
            yield from self.compare("pixel_values", self.normalized.transpose(0, 3, 1, 2), SIMPLE)
        if self.names & {"pixel_values", "images_uint8"}:
            features = self.apply(self.tiles, method="patches")
            if self.config.shuffle > 1:
                features = pixel_shuffle(features, self.config.shuffle)
            yield from self.compare("vision_features", features, SIMPLE)
            yield from self.compare("projected", self.apply(self.tiles, method="encode_images"), SIMPLE)

    @functools.cached_property
    def normalized(self) -> jax.Array:
        pixels = jnp.asarray(self.recorded["images_uint8"].transpose(0, 2, 3, 1))
        return normalize(pixels, self.config.vision.mean, self.config.vision.std)

    @functools.cached_property
    def tiles(self) -> jax.Array:
        if "pixel_values" not in self.names and "images_uint8" in self.names:
            return self.normalized
        return jnp.asarray(self.recorded["pixel_values"].transpose(0, 2, 3, 1))

    def counts(self, tokens: np.ndarray) -> np.ndarray:
        """int[B], the pictures that the image tokens of each row ask for."""
        return (tokens == self.config.image_token).sum(1) // self.config.image_tokens

    def images(self, tokens: np.ndarray, rows: int = 0, tiles: int = 0) -> jax.Array | None:
        """[B, M, height, width, C]: for each row as many of the recorded pictures as it asks for, B and M at least."""
        counts = self.counts(tokens)
        shape = max(rows, len(tokens)), max(tiles, counts.max())
        if not shape[1]:
            return None
        recorded, start = np.asarray(self.tiles), 0
        if counts.sum() > len(recorded):
            raise UserError(f"image tokens ask for {counts.sum()} pictures, pixel_values has {len(recorded)}")
        images = np.zeros((*shape, *recorded.shape[1:]), np.float32)
        for row, count in zip(images, counts, strict=False):
            row[:count] = recorded[start : start + count]
            start += count
        return jnp.asarray(images)

    def apply(self, *inputs, **options):
        return jax.jit(functools.partial(self.model.apply, **options))(self.params, *inputs)

    # ------------------------------------------------------------------ language
    def prompts(self, cases: list[str]) -> Iterator[Row]:
        """Every case padded on the left to the size of the largest, so that one program is compiled for all."""
        given = {case: self.recorded[f"{case}.input_ids"].astype(np.int32) for case in cases}
        masks = {case: self.recorded[f"{case}.attention_mask"] == 1 for case in cases}
        rows, length = (max(tokens.shape[axis] for tokens in given.values()) for axis in (0, 1))
        tiles = max(self.counts(np.where(masks[case], given[case], -1)).max() for case in cases)

        @jax.jit
        def run(variables, tokens, attended, images):
            (x, out), seen = self.model.apply(
                variables, tokens, images, segment_ids=attended.astype(jnp.int32), mutable="intermediates"
            )
            (hidden,) = seen["intermediates"]["decoder"]["layers"]["hidden"]
            return jnp.concatenate([hidden, x[None]]), out["kv"], self.model.apply(variables, x, method="logits")

        for case, tokens in given.items():
            count, short = tokens.shape
            pad = ((0, rows - count), (length - short, 0))
            images = self.images(np.where(masks[case], tokens, -1), rows, tiles)
            out = run(self.params, np.pad(tokens, pad), np.pad(masks[case], pad), images)
            cut = lambda a, count=count, short=short: np.asarray(a)[..., :count, length - short :, :]  # noqa: E731
            states, logits, where = cut(out[0]), cut(out[2]), masks[case]
            for i, state in enumerate(states):
                yield from self.compare(f"{case}.hidden.{i}", state, COMPOSITE, where, layer=max(0, i - 1))
            for name, by_layer in zip("kv", out[1], strict=True):
                by_layer = np.asarray(by_layer)[:, :count, length - short :].swapaxes(2, 3)
                in_cache = np.broadcast_to(where[:, None], by_layer.shape[1:4])
                for i, state in enumerate(by_layer):
                    yield from self.compare(f"{case}.{name}.{i}", state, COMPOSITE, in_cache, layer=i)
            yield from self.compare(f"{case}.logits", logits, COMPOSITE, where)

    def generation(self, beams: int, cases: list[str]) -> Iterator[Row]:
        """All prompts as one batch, padded on the left. The difference is the part of the tokens that differ."""
        for case in cases:
            if len(self.recorded[f"{case}.prompt"]) != 1 or len(self.recorded[f"{case}.tokens"]) != 1:
                raise UserError(f"{case} has several prompts; record each under a name of its own")
        prompts = [self.recorded[f"{case}.prompt"][0].astype(np.int32) for case in cases]
        expected = [self.recorded[f"{case}.tokens"][0] for case in cases]
        length, new = max(map(len, prompts)), max(map(len, expected))
        tokens = np.stack([np.pad(prompt, (length - len(prompt), 0)) for prompt in prompts])
        attended = np.stack([np.arange(length) >= length - len(prompt) for prompt in prompts]).astype(np.int32)
        tokens = np.where(attended, tokens, -1)  # padding is no image token
        images, tokens = self.images(tokens), np.maximum(tokens, 0)
        end = files.read_json(self.source.folder / engine.CONFIG).get("eos_token_id", 2)
        options = dict(max_new_tokens=new, stop=tuple(end) if isinstance(end, list) else (end,))
        run = generate if beams == 1 else functools.partial(beam_search, beams=beams)
        answers, out = run(self.model, self.params["params"], tokens, attended, images, **options)
        for i, (case, answer, wanted) in enumerate(zip(cases, np.asarray(answers), expected, strict=True)):
            self.left.discard(f"{case}.tokens")
            yield Row(f"{case}.tokens", float(np.mean(answer[: len(wanted)] != wanted)), 0.0)
            if beams > 1:
                yield from self.compare(f"{case}.score", out["score"][i : i + 1], COMPOSITE)

    # ------------------------------------------------------------------ training
    def training(self) -> Iterator[Row]:
        tokens = jnp.asarray(self.recorded["train.input_ids"], jnp.int32)
        attended = jnp.asarray(self.recorded["train.attention_mask"], jnp.int32)
        mask = jnp.asarray(self.recorded["train.labels"] != -100) & (attended == 1)
        images = self.images(np.asarray(tokens))

        def loss_fn(params):
            x, _ = self.model.apply({"params": params}, tokens, images, segment_ids=attended)
            total, count, _ = next_token_loss(x, params["decoder"]["head"]["kernel"], tokens, mask)
            return total / count

        loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(self.params["params"])
        yield from self.compare("train.loss", loss, SIMPLE)
        flat = flatten_dict(gradients, sep="/")
        for move in self.source.plan:
            ours = [np.asarray(flat[path]) for path in move.rule.ours]
            for layer, name, array in move.to_released(ours, self.config.shared_gate):
                for key in self._gradient_keys(name, move.is_gate):
                    yield from self.compare(key, array, COMPOSITE, layer=layer if move.rule.by_layer else None)

    def _gradient_keys(self, name: str, is_gate: bool) -> list[str]:
        if is_gate:  # named after the module that holds it in the original
            return [key for key in self.names if key.startswith("train.grad.") and key.endswith(f"trol_gating.{name}")]
        return [f"train.grad.{name}"]
