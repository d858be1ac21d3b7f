"""Prepare training data: python -m launch.prepare_data --demo --root=DIR

`--demo` writes a miniature of all eleven sources, in the real formats and layout, to try everything with.
"""

from absl import flags

from launch import cli

ROOT = flags.DEFINE_string("root", None, "Data folder: the files and pictures of the sources. For --demo a new one.")
DEMO = flags.DEFINE_bool("demo", False, "Write a miniature of all sources to --root.")


def main(_):
    from trol_jax.data.demo import write_demo
    from trol_jax.data.sources import open_sources
    from trol_jax.errors import UserError

    if not DEMO.value:
        raise UserError("nothing to do: --demo writes a miniature of all sources to --root")
    root = write_demo(ROOT.value)
    for name, source in open_sources(root).items():
        print(f"{name:20} {len(source):3} samples  {source.spec.file}")
    print(f"written to {root}")


if __name__ == "__main__":
    cli.run(main, required=["root"])
