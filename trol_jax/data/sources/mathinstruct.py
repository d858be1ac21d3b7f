"""MathInstruct: problems with solutions in words (CoT) or as a Python program (PoT), text only.

https://huggingface.co/datasets/TIGER-Lab/MathInstruct
"""

from collections.abc import Mapping

from trol_jax.data.sources.sample import ASSISTANT, USER, Sample, field


def read(row: Mapping, source: str, number: int) -> Sample:
    turns = (USER, field(row, "instruction", str)), (ASSISTANT, field(row, "output", str))
    return Sample(source, str(number), turns)
