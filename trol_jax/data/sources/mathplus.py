"""MATH-plus: problems with worked solutions, text only. Which 304,754 of its 894,000 rows were taken is not known.

https://huggingface.co/datasets/TIGER-Lab/MATH-plus
"""

from trol_jax.data.sources.mathinstruct import read

__all__ = ["COLUMNS", "read"]
COLUMNS = "instruction", "output"
