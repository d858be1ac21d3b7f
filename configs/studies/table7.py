"""Table 7: traversal switched on in a model that was trained without, which hurts.

Both rows train the same; of a run that is there, `launch.evaluate --traversal=answer_passes=2` answers as the second.
"""

from configs.studies import study

ROWS = {
    "off": {"model.passes": 1},
    "on": {"model.passes": 1, "model.traversal.answer_passes": 2},
}

get_config = study(ROWS)
