"""The study of gates (section 4.3): one linear map or two, for all layers as released or for each as in the paper.

(Its attention and resampler gates, of 2 to 13 billion parameters in the 7B, are not built here.)
"""

from configs.studies import study

TWO = {"model.traversal.gate": "two_linear"}
ROWS = {
    "linear": {},
    "linear_per_layer": {"model.shared_gate": False, "start_from": "runs/tower_linear_per_layer"},
    "two_linear": TWO | {"start_from": "runs/tower_two_linear"},
    "two_linear_per_layer": TWO | {"model.shared_gate": False, "start_from": "runs/tower_two_linear_per_layer"},
}

get_config = study(ROWS)
