"""Make a whole checkpoint of a run that trained some parameters: python -m launch.merge --checkpoint=RUN --dst=DIR"""

from absl import flags

from launch import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The run, its checkpoints or one step.")
DST = flags.DEFINE_string("dst", None, "Directory to write, which holds no checkpoints.")
BASE = flags.DEFINE_string("base", None, "Where the checkpoint is that the run began with, if it was moved.")


def main(_):
    from tqdm import tqdm

    from trol_jax.train.merge import merge

    with tqdm(unit="B", unit_scale=True, desc="merge", mininterval=0.5, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        step_dir = merge(CHECKPOINT.value, DST.value, BASE.value, progress)
    print(step_dir)


if __name__ == "__main__":
    cli.run(main, required=["checkpoint", "dst"])
