"""Flags of the programs that answer: how the device holds a checkpoint."""

from absl import flags

WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["float32", "bfloat16", "int8", "nf4"], "Weights on the device; by default as they are stored."
)
CACHE = flags.DEFINE_enum(
    "cache", None, ["float32", "bfloat16", "int8"], "Keys and values; by default what is computed in."
)


def options() -> dict[str, str | None]:
    """For `Answerer.load`."""
    return {"weight_kind": WEIGHTS.value, "cache": CACHE.value}
