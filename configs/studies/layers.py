"""Which of the layers are traversed, of the tiny models' three."""

from configs.studies import study

ROWS = {
    "all": {},
    **{
        f"{which}_{count}": {"model.traversal.layers": f"{which} {count}"}
        for which, count in (("first", 1), ("first", 2), ("last", 1), ("last", 2), ("every", 2))
    },
    "second": {"model.traversal.layers": "1"},
}

get_config = study(ROWS)
