"""Table 10: trained with traversal, and answered without.

Both rows train the same; of a run that is there, `launch.evaluate --traversal=answer_passes=1` answers as the second.
"""

from configs.studies import study

ROWS = {
    "with": {},
    "without": {"model.traversal.answer_passes": 1},
}

get_config = study(ROWS)
