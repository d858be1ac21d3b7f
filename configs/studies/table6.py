"""Table 6: other models, without and with traversal. Here they are the two families of language models.

The tower of InternLM2: `--config=configs/studies/table6.py:internlm2,tower --workdir=runs/tower_internlm2`.
"""

from configs.studies import study

INTERNLM2 = {"model.variant": "tiny_internlm2", "start_from": "runs/tower_internlm2"}
ROWS = {
    "phi3_without": {"model.passes": 1},
    "phi3": {},
    "internlm2_without": INTERNLM2 | {"model.passes": 1},
    "internlm2": INTERNLM2,
}
AGAINST = {"phi3": "phi3_without", "internlm2": "internlm2_without"}

get_config = study(ROWS)
