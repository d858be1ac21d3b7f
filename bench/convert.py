"""Time and memory of converting a full-size checkpoint of random numbers, against plain copies of its file.

    python -m bench.convert --dir=DIR [--variant=trol_1_8b]      (needs three times the checkpoint on disk)

Memory is what a process holds of its own (RssAnon), the file cache apart.
"""

import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import threading
import time

import numpy as np
from absl import app, flags

DIR = flags.DEFINE_string("dir", None, "Scratch directory; removed and made.", required=True)
VARIANT = flags.DEFINE_string("variant", "trol_1_8b", "Size of the model.")
COPIES = 5


def main(_):
    root = pathlib.Path(DIR.value)
    shutil.rmtree(root, ignore_errors=True)
    released, copy, ours, back = (root / name for name in ("released", "copy", "ours", "back"))
    measured(write_released, released, VARIANT.value)
    weights = released / "model.safetensors"
    gigabytes = weights.stat().st_size / 1e9
    copies = [measured(copy_file, weights, copy)[0] for _ in range(COPIES)]
    plain = statistics.median(copies)
    each = ", ".join(f"{seconds:.1f}" for seconds in copies)
    print(f"{VARIANT.value}: {gigabytes:.2f} GB; plain copies, flushed to disk: {each} s", flush=True)
    for what, job, arguments in (
        ("import", convert, ("to_jax", released, ours)),
        ("export", convert, ("to_hf", ours, back)),
    ):
        seconds, peak = measured(job, *arguments)
        print(
            f"{what}: {seconds:.1f} s ({seconds / plain:.2f} x the median copy), peak {peak / 2**20:.0f} MiB",
            flush=True,
        )
    same = (back / "model.safetensors").read_bytes() == weights.read_bytes() if gigabytes < 6 else "not compared"
    print(f"exported file equal to the released one: {same}")
    shutil.rmtree(root)


def measured(job, *arguments) -> tuple[float, int]:
    """(seconds, peak of the process's own bytes) of a job in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=watched, args=(queue, job, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
    return queue.get()


def watched(queue, job, arguments) -> None:
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, own_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.monotonic()
    job(*arguments)
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    queue.put((seconds, peak))


def own_bytes() -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon: Linux is needed")


def copy_file(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def convert(which: str, source: pathlib.Path, target: pathlib.Path) -> None:
    from convert import engine

    getattr(engine, which)(source, target)


def write_released(folder: pathlib.Path, variant: str) -> None:
    from convert import engine, files, gate, hf_config, torch_files
    from trol_jax.data.prompts import FORMATS
    from trol_jax.data.tokenizer import train_tokenizer
    from trol_jax.models.variants import get_variant

    config = get_variant(variant)
    layout = next(layout for layout in engine.LAYOUTS if layout.family == config.family and layout.has_gate)
    plan = engine.moves(layout.rules, engine.shapes_of(config))
    half = np.dtype(np.float16)
    shapes = {
        name: (shape, half) for m in plan for names in m.names for name, shape in zip(names, m.released, strict=True)
    }
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with files.Writer(folder / files.WEIGHTS[0], shapes) as writer:
        for name, (shape, _) in shapes.items():
            writer.write(name, rng.standard_normal(shape, np.float32))
    width, layers = config.decoder.width, config.decoder.layers
    pair = {"weight": rng.standard_normal((1, width)).astype(half), "bias": np.zeros(1, half)}
    torch_files.write(folder / gate.FILE, {f"{i}.{name}": value for i in range(layers) for name, value in pair.items()})
    (folder / engine.CONFIG).write_bytes(hf_config.write(config))
    tokenizer = train_tokenizer(["a"], FORMATS[config.family])
    (folder / "tokenizer.json").write_bytes(tokenizer.dump())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))


if __name__ == "__main__":
    app.run(main)
