"""Table 8: more passes, with one gate for all further ones, or one for each."""

from configs.studies import study

ROWS = {
    "one": {"model.passes": 1},
    "two": {},
    "three": {"model.passes": 3},
    "four": {"model.passes": 4},
    "three_gates": {"model.passes": 3, "model.traversal.gates": 2, "start_from": "runs/tower_three_gates"},
    "four_gates": {"model.passes": 4, "model.traversal.gates": 3, "start_from": "runs/tower_four_gates"},
}

get_config = study(ROWS)
