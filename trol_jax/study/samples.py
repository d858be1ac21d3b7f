"""The samples that a study looks at: those of any data of the project, in an order drawn once."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from trol_jax.data import prepared
from trol_jax.data.easy_vqa import EasyVQA, package_data
from trol_jax.data.mixture import Mixture, Part
from trol_jax.data.sources import SOURCES, open_sources
from trol_jax.data.sources.sample import ASSISTANT, IMAGE, USER, Sample
from trol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Samples:
    """each: every sample once; what task one is of is its `source`. names: of the tasks. root: of the pictures."""

    each: Sequence[Sample]
    names: tuple[str, ...]
    root: str


class Questions(Sequence):
    """The test questions of easy-vqa, or of a folder in its layout, as samples whose source is the kind of question."""

    def __init__(self, root: str):
        self.root, self._rows = root, EasyVQA("test", root).questions()
        self.kinds = tuple(dict.fromkeys(row["kind"] for row in self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        turns = (USER, f"{IMAGE}\n{row['question']}"), (ASSISTANT, row["answer"])
        return Sample(row["kind"], str(row["id"]), turns, (os.path.relpath(row["image"], self.root),))


def open_samples(root: str | os.PathLike | None = None) -> Samples:
    """root: training data, as files of its sources (some of them are enough) or prepared, or a folder in the layout of
    easy-vqa; by default that of the package. UserError where there is none of these.
    """
    root = os.path.abspath(package_data() if root is None else root)
    if os.path.isdir(os.path.join(root, "test")):
        questions = Questions(root)
        return Samples(Mixture({"test": questions}, [Part("test")], seed=0), questions.kinds, root)
    if folder := prepared.find(root):
        sources = prepared.open_prepared(folder)
    else:
        sources = open_sources(root, [name for name, spec in SOURCES.items() if Path(root, spec.file).is_file()])
    sources = {name: source for name, source in sources.items() if len(source)}
    if not sources:
        raise UserError(f"{root} has neither test/questions.json nor a file of training data (docs/data.md)")
    return Samples(Mixture(sources, [Part(name) for name in sources], seed=0), tuple(sources), root)
