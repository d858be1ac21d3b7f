"""The paper's ablations as run files: `--config=configs/studies/FILE.py:ROW`, on the quickstart's model and data.

A row is a table of settings that differ from `configs/quickstart.py`. Further words change the data and the length:
`:ROW,shapes` is the harder task (`launch.prepare_data --shapes --root=data/shapes`), `:ROW,smoke` takes a few steps,
and `:ROW,tower` is the tower that the row starts from, where its `start_from` is not there yet.
"""

from collections.abc import Callable, Mapping

import ml_collections

from configs import quickstart

WORDS = ("shapes", "smoke", "tower")
Rows = Mapping[str, Mapping[str, object]]


def study(rows: Rows) -> Callable[[str], ml_collections.ConfigDict]:
    """The `get_config` of a file with these rows; without a name the first counts."""

    def get_config(arg: str = "") -> ml_collections.ConfigDict:
        name, *words = arg.split(",") if arg else [next(iter(rows))]
        if name not in rows or not set(words) <= set(WORDS):
            raise ValueError(f"choose one of {', '.join(rows)}, then any of {', '.join(WORDS)}, not {arg!r}")
        config = quickstart.get_config(",".join(word for word in words if word != "shapes"))
        changes = {key: value for key, value in rows[name].items() if key != "start_from" or config.start_from}
        config.update_from_flattened_dict(changes)
        if "shapes" in words:
            with_shapes(config)
        return config

    return get_config


def with_shapes(config: ml_collections.ConfigDict) -> None:
    config.data.root = "data/shapes"
    config.data.augment = ()  # left would become right
    if config.objective == "answers":  # as many questions a step as the quickstart, of half as many pictures
        config.batch_size, config.data.turns, config.data.max_length = 8, 8, 136
    config.start_from = config.start_from and f"{config.start_from}_shapes"
