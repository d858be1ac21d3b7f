"""The gate, in a file of its own: one pair of tensors a layer, equal in all layers as released."""

from convert.rules import table
from convert.transforms import same

FILE = "trol_gating.pt"
RULES = table(
    {"{i}.weight": ("gate_kernel", same(leading=1)), "{i}.bias": ("gate_bias", same(leading=1))}, ours="decoder/"
)
