"""Table 5: what traversal adds. (Its third row, a mixture of experts of more parameters, is not built here.)"""

from configs.studies import study

ROWS = {
    "none": {"model.passes": 1},
    "traversing": {},
}

get_config = study(ROWS)
