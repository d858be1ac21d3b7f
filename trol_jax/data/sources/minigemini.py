"""MiniGemini's instructions, of which the mixture takes documents, charts and diagrams.

https://github.com/dvlab-research/MGM
"""

from trol_jax.data.sources.filters import ByPicture
from trol_jax.data.sources.sample import llava

documents = ByPicture(kept=("docvqa/", "chartqa/", "dvqa/", "ai2d/"))
read = llava
