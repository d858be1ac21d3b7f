"""The main question: does a second pass help, at equal parameters, and at equal FLOPs?

One pass and two have the same parameters. One pass through twice the layers (`deeper`) has the FLOPs of two passes; one
with a wider MLP (`wider`) has as many parameters as the deeper, and 95% of the FLOPs (in the
longer rows of shapes 90%).
"""

from configs.studies import study

ROWS = {
    "one": {"model.passes": 1},
    "two": {},
    "three": {"model.passes": 3},
    "deeper": {"model.passes": 1, "model.variant": "tiny_phi3_6_layers", "start_from": "runs/tower_6_layers"},
    "wider": {"model.passes": 1, "model.variant": "tiny_phi3_wider", "start_from": "runs/tower_wider"},
}

get_config = study(ROWS)
