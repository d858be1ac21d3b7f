"""ALLaVA-4V, its text part: instructions of Evol-Instruct with answers of GPT-4 Turbo, a turn each.

https://huggingface.co/datasets/FreedomIntelligence/ALLaVA-4V
"""

import functools

from trol_jax.data.sources.sample import llava

read = functools.partial(llava, id="idx")
