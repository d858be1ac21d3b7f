"""What a conversion rule is. The tables are in `internlm2`, `phi3`, `clip`, `intern_vit` and `gate`."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from convert.transforms import Transform, same

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Released tensors <-> our parameters, by name.

    `{i}` in a released name stands for the number of a layer; our parameter then has the layers stacked along its first
    axis, and the transform sees one layer at a time.
    """

    released: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform

    @property
    def by_layer(self) -> bool:
        return "{i}" in self.released[0]

    def names(self, layer: int) -> list[str]:
        return [name.replace("{i}", str(layer)) for name in self.released]

    def shapes(self, ours: Mapping[str, Shape]) -> tuple[int, list[Shape], list[Shape]]:
        """(layers, our shapes of one layer, released shapes of one layer), from our whole shapes by path."""
        whole = [ours[path] for path in self.ours]
        layers = whole[0][0] if self.by_layer else 1
        mine = [shape[1:] for shape in whole] if self.by_layer else whole
        # An array of no memory to speak of goes through the transform and tells the shapes on the other side.
        example = [np.broadcast_to(np.zeros((), np.uint8), shape) for shape in mine]
        return layers, mine, [tuple(array.shape) for array in self.transform.to_torch(example)]


def table(rules: Mapping, released: str = "", ours: str = "") -> list[Rule]:
    """Rules from {released name(s): our path(s)} or {...: (our path(s), transform)}, with prefixes for both sides."""
    made = []
    for theirs, target in rules.items():
        paths, transform = target if isinstance(target, tuple) else (target, same())
        theirs, paths = ((x,) if isinstance(x, str) else x for x in (theirs, paths))
        made.append(Rule(tuple(released + name for name in theirs), tuple(ours + path for path in paths), transform))
    return made
