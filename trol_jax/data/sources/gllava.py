"""G-LLaVA (Geo170K): descriptions of geometric figures, and questions about them. Rows have no id.

https://huggingface.co/datasets/Luckyjhg/Geo170K
"""

from trol_jax.data.sources.sample import llava

COLUMNS = "id", "idx", "conversations", "image"
read = llava
