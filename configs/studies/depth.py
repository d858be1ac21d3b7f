"""By depth: what a second pass adds to a model of one layer, of two, three and six."""

from configs.studies import study

ROWS, AGAINST = {}, {}
for layers in (1, 2, 3, 6):
    size = {} if layers == 3 else {
        "model.variant": f"tiny_phi3_{layers}_layers", "start_from": f"runs/tower_{layers}_layers",
    }  # fmt: skip
    ROWS[f"{layers}_once"] = size | {"model.passes": 1}
    ROWS[f"{layers}_twice"] = size
    AGAINST[f"{layers}_twice"] = f"{layers}_once"

get_config = study(ROWS)
