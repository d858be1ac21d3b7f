"""Which tokens are traversed."""

from configs.studies import study

ROWS = {name: {"model.traversal.tokens": name} for name in ("all", "prompt", "image", "text")}

get_config = study(ROWS)
