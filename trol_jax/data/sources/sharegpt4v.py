"""ShareGPT4V: captions of GPT4-Vision, and the instructions of LLaVA with 23,000 of those captions.

Both are of the LLaVA format, with the picture's mark first or last in the first question; some instructions are text
only. https://github.com/InternLM/InternLM-XComposer/blob/main/projects/ShareGPT4V/docs/Data.md
"""

from trol_jax.data.sources.filters import ByPicture
from trol_jax.data.sources.sample import llava

without_sam = ByPicture(dropped=("sam/",))
read = llava
