"""A run that trained some parameters, and its base, as one whole checkpoint."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from trol_jax import checkpoint, manifest, saved, typed
from trol_jax.data.folders import new_folder
from trol_jax.errors import UserError
from trol_jax.lazy import Lazy
from trol_jax.models import kernels
from trol_jax.ops.linear import Adapted, merged
from trol_jax.train import loop, parameters


def merge(
    path: str | os.PathLike,
    directory: str | os.PathLike,
    base: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the whole model of a run (or a step of it) as a checkpoint under `directory`; returns the step's folder.

    Kernels with pairs are written as what they stood for in training, also where they were quantised; others that were
    quantised were not trained, and stay what they are in the base. Numbers are in the base's dtypes.
    base: where the run's base is now, if it was moved.
    UserError for a run that is whole or not at its end (a step of it may be named), damage to it or to its base,
    a base that is gone or another, and a `directory` that is not empty.
    """
    step_dir = checkpoint.resolve(path)
    here = saved.read(step_dir)
    if here.base is None:
        raise UserError(f"{step_dir} is whole already: every parameter was trained")
    loop.require_finished(step_dir, str(path))
    checkpoint.require_sound(step_dir)
    if base is not None:
        here = dataclasses.replace(here, base=saved.Base(str(base), here.base.identity))
    tree = unflatten_dict(dict(_arrays(step_dir, here, progress)), sep="/")
    step = manifest.read(step_dir)["step"]
    whole = dataclasses.replace(here, base=None)
    options = dict(data_state=None, config=typed.to_dict(here.settings), files=whole.files())
    with new_folder(directory) as folder, checkpoint.Checkpoints(Path(folder, checkpoint.CHECKPOINTS)) as checkpoints:
        checkpoints.save(step, {"params": tree}, **options)
    return Path(directory) / checkpoint.CHECKPOINTS / str(step)


def _arrays(step_dir: Path, here: saved.Saved, progress) -> Iterator[tuple[str, Lazy]]:
    base_dir, lora = here.base.find(), here.settings.lora
    shapes = checkpoint.arrays_in(base_dir, checkpoint.PARAMS)
    found = parameters.treatments(here.settings.parameters, list(shapes))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    for name, leaf in shapes.items():
        make = functools.partial(_layers, step_dir, base_dir, name, found[name], lora, here.settings.dtype)
        yield name, Lazy(leaf.shape, np.dtype(leaf.dtype), functools.partial(_counted, make, leaf, progress, total))


def _counted(make, leaf, progress, total) -> Iterator[np.ndarray]:
    for rows in make():
        yield rows
        progress(rows.size * leaf.dtype.itemsize, total)


def _layers(step_dir, base_dir, name, treatment, lora, dtype) -> Iterator[np.ndarray]:
    """Rows of one array: of kernels a layer at a time."""
    open_own = functools.partial(checkpoint.open_array, step_dir)
    if treatment.trained:
        yield open_own(checkpoint.PARAMS + name).read().result()
        return
    store = checkpoint.open_array(base_dir, checkpoint.PARAMS + name)
    if not treatment.lora:
        yield store.read().result()
        return
    stem, inputs = checkpoint.PARAMS + name.removesuffix("kernel"), kernels.inputs(name)
    pair = [open_own(stem + end) for end in (parameters.A, parameters.B)]
    for i in range(store.shape[0]):
        stacked = [each[i : i + 1].read().result() for each in (store, *pair)]
        yield np.asarray(_whole(name, treatment, dtype, inputs, lora.alpha / lora.rank, *stacked))


@functools.partial(jax.jit, static_argnums=range(5))
def _whole(name, treatment, dtype, inputs, scale, kernel, a, b) -> jax.Array:
    frozen = parameters.freeze(name, kernel, treatment, jnp.dtype(dtype))
    return jax.vmap(lambda *parts: merged(Adapted(*parts, scale), inputs))(frozen, a, b)
