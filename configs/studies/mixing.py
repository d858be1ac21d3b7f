"""The study of mixing operations (section 4.3): terms of the formula by themselves, and scores that no gate gives."""

from configs.studies import study

ROWS = {
    "gate": {},
    "first": {"model.traversal.mix": "first"},
    "second": {"model.traversal.mix": "second"},
    "random": {"model.traversal.mix": "random"},
    "uniform": {"model.traversal.mix": "uniform"},
    "constant": {
        "model.traversal.mix": "constant", "model.shared_gate": False, "start_from": "runs/tower_constant",
    },
}  # fmt: skip

get_config = study(ROWS)
