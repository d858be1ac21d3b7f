"""Flags of the programs that answer: how the devices hold a checkpoint."""

from absl import flags

WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["float32", "bfloat16", "int8", "nf4"], "Weights on the device; by default as they are stored."
)
CACHE = flags.DEFINE_enum(
    "cache", None, ["float32", "bfloat16", "int8"], "Keys and values; by default what is computed in."
)
TRAVERSAL = flags.DEFINE_string(
    "traversal",
    None,
    "Answer by other options than the model was trained with, as answer_passes=1; see trol_jax/ops/traversal.py.",
)
SYSTEM = flags.DEFINE_string(
    "system", None, "Message before the question; by default that of training, of a converted model the original's."
)
MESH = flags.DEFINE_string(
    "mesh", None, "Devices by axis, as data=2,tensor=-1 (-1 = the rest); by default the first device alone."
)
RULES = flags.DEFINE_string(
    "rules", None, "What lies along these: replicated, data, fsdp, tensor, fsdp_tensor (by default) or sequence."
)


def options() -> dict[str, str | None]:
    """For `Answerer.load`: what changes answers."""
    return {"weight_kind": WEIGHTS.value, "cache": CACHE.value, "traversal": TRAVERSAL.value, "system": SYSTEM.value}


def layout():
    """For `Answerer.load`: over the devices of this process."""
    import jax

    from trol_jax.errors import UserError
    from trol_jax.models.layers import anywhere
    from trol_jax.sharding.mesh import make_mesh
    from trol_jax.sharding.rules import Layout

    if MESH.value is None:
        if RULES.value is not None:
            raise UserError("--rules does nothing without --mesh; say how many devices, as --mesh=data=1,tensor=-1")
        return anywhere
    mesh = make_mesh(MESH.value, jax.local_devices())
    return Layout.make(mesh, "fsdp_tensor" if RULES.value is None else RULES.value)
