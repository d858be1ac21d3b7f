"""Table 9: whether answers are traversed. As released they are in training and not when they are generated."""

from configs.studies import study

ROWS = {
    "released": {},
    "question": {"model.traversal.tokens": "prompt"},
    "question_answer": {"model.traversal.decode": True},
}

get_config = study(ROWS)
