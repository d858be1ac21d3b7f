"""The kernels of the decoder's layers, which may be quantised and adapted."""

import re

# How many axes of a kernel (of one layer) are inputs, by its name.
INPUTS = (
    (r"decoder/layers/block/(qkv|gate|up|down)/kernel", 1),
    (r"decoder/layers/block/out/kernel", 2),
)
# Few numbers, and each of them weighs on many: always in float32.
PRECISE = r".*norm[12]?/(scale|bias)|.*/scale[12]|decoder/gate_(kernel|bias)"


def inputs(name: str) -> int | None:
    """None for a parameter that is no kernel of a layer."""
    return next((count for expression, count in INPUTS if re.fullmatch(expression, name)), None)
