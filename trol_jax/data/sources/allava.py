"""ALLaVA-4V, its text part: instructions of Evol-Instruct with answers of GPT-4 Turbo, a turn each. The id is "idx".

https://huggingface.co/datasets/FreedomIntelligence/ALLaVA-4V
"""

from trol_jax.data.sources.sample import llava

read = llava
