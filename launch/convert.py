"""Convert: python -m launch.convert --to=jax --src=HF_DIR --dst=DIR, or --to=hf --src=DIR --dst=HF_DIR

HF_DIR is a folder in the released layout: config.json, model.safetensors (or shards, or pytorch_model.bin),
trol_gating.pt and the tokeniser's files. `--to=peft --src=RUN` writes the low-rank pairs of a run as PEFT's adapter.
`--check=FILE.npz --src=HF_DIR` compares with recorded outputs instead.
"""

import pathlib
import sys

from absl import flags

from launch import cli

TO = flags.DEFINE_enum(
    "to", None, ["jax", "hf", "peft"], "What to write: a checkpoint of ours, the released layout, an adapter of PEFT."
)
SRC = flags.DEFINE_string("src", None, "What to read.")
DST = flags.DEFINE_string("dst", None, "Directory to write: without checkpoints (jax), or a new or an empty one.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Cast to it; by default nothing is cast.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would become of each tensor, and stop.")
CHECK = flags.DEFINE_string("check", None, "Recorded inputs and outputs of the original (.npz) to compare with.")


def main(_):
    import jax.numpy as jnp
    from tqdm import tqdm

    from convert import check, engine, peft
    from trol_jax.errors import UserError

    src = pathlib.Path(SRC.value)
    if CHECK.value:
        if TO.value or DST.value or DRY_RUN.value or DTYPE.value:
            raise UserError(
                "--check compares in float32 and writes nothing: leave out --to, --dst, --dtype and --dry_run"
            )
        report = check.check(src, pathlib.Path(CHECK.value))
        print(check.table(report))
        sys.exit(0 if all(row.passed for row in report) else 1)
    if TO.value is None:
        raise UserError("--to is missing: jax, hf or peft (or --check=FILE.npz)")
    dtype = DTYPE.value and jnp.dtype(DTYPE.value)
    if DRY_RUN.value:
        print(peft.describe(src, dtype) if TO.value == "peft" else engine.describe(TO.value, src, dtype))
        return
    if not DST.value:
        raise UserError("--dst is missing: the directory to write")
    convert = {"jax": engine.to_jax, "hf": engine.to_hf, "peft": peft.to_peft}[TO.value]
    with tqdm(unit="B", unit_scale=True, desc="convert", mininterval=0.5, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        made = convert(src, pathlib.Path(DST.value), dtype, progress)
    print(f"{made if TO.value == 'peft' else made.name}: {src} -> {DST.value}")


if __name__ == "__main__":
    cli.run(main, required=["src"])
