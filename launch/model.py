"""Flags of the programs that answer: which checkpoint, and how the device holds it."""

from absl import flags

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["float32", "bfloat16", "int8", "nf4"], "Weights on the device; by default as they are stored."
)
CACHE = flags.DEFINE_enum(
    "cache", None, ["float32", "bfloat16", "int8"], "Keys and values; by default what is computed in."
)


def options() -> dict[str, str | None]:
    """For `Answerer.load`."""
    return {"weight_kind": WEIGHTS.value, "cache": CACHE.value}
