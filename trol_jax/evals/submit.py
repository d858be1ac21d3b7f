"""The files that servers and the authors' scorers take, made of the same answers that are scored here.

Every question is in them, with "" where there is no answer: servers refuse files that lack any, and scorers take the
mean over those that are there.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from trol_jax.evals.evalai import normalize
from trol_jax.evals.items import Item, Sample

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that a cell cannot hold


@dataclass(frozen=True)
class Said:
    """parsed: by the rules of the scoring, None where they find nothing."""

    item: Item
    answer: str = ""
    parsed: Any = None

    @property
    def letter(self) -> str:
        """A letter where one was found, else the answer as it is."""
        return self.parsed if isinstance(self.parsed, str) else self.answer


def submission(name: str, scoring: str, items: Sequence[Item | None], samples: Sequence[Sample]):
    """(The ending of the file, its content), or None: nobody takes files of that benchmark."""
    if name not in FORMATS:
        return None
    given = {sample.item.index: Said(sample.item, sample.answer, sample.parsed) for sample in samples}
    ending, make = FORMATS[name]
    return ending, make([given.get(item.index, Said(item)) for item in items if item is not None], scoring)


def text(said: Said, scoring: str) -> str:
    """As it was said, as the original hands it in; or normalised as EvalAI does, as LLaVA does."""
    return normalize(said.answer) if scoring == "standard" else said.answer


def vqav2(all_said: Sequence[Said], scoring: str) -> bytes:
    return whole([{"question_id": said.item.id, "answer": text(said, scoring)} for said in all_said])


def vizwiz(all_said: Sequence[Said], scoring: str) -> bytes:
    """By the picture's name; the original writes its number, which the server does not know."""
    return whole([{"image": picture(said.item), "answer": text(said, scoring)} for said in all_said])


def table(rows: Sequence[Sequence[str | int | None]]) -> bytes:
    """A spreadsheet of one sheet. Texts stay texts, those that begin as a formula does too."""
    import openpyxl  # brings NumPy, which scores do without

    book = openpyxl.Workbook()
    for i, row in enumerate(rows, start=1):
        for j, value in enumerate(row, start=1):
            cell = book.active.cell(i, j, NO_XML.sub("", value) if isinstance(value, str) else value)
            cell.data_type = "s" if isinstance(value, str) else cell.data_type
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def mmbench(all_said: Sequence[Said], scoring: str) -> bytes:
    """The table's columns but for hint, picture and kinds, with "prediction" after the options."""
    columns = list(all_said[0].item.fields["row"]) if all_said else []
    columns.insert(max((columns.index(name) + 1 for name in "ABCD" if name in columns), default=0), "prediction")
    rows = ({**said.item.fields["row"], "index": said.item.id, "prediction": said.letter} for said in all_said)
    return table([columns, *([row.get(name) for name in columns] for row in rows)])


def mmmu(all_said: Sequence[Said], scoring: str) -> bytes:
    return whole({said.item.id: said.letter for said in all_said})


def mm_vet(all_said: Sequence[Said], scoring: str) -> bytes:
    return whole({said.item.id: said.answer for said in all_said})


def mathvista(all_said: Sequence[Said], scoring: str) -> bytes:
    return whole({said.item.id: {**said.item.fields["record"], "response": said.answer} for said in all_said})


def hallusionbench(all_said: Sequence[Said], scoring: str) -> bytes:
    return whole([{**said.item.fields["record"], "model_prediction": said.answer} for said in all_said])


def llava(all_said: Sequence[Said], scoring: str) -> bytes:
    return b"".join(map(encode, llava_lines(all_said)))


def llava_lines(all_said: Sequence[Said]) -> Iterator[dict]:
    """LLaVA's answer files; answer_id is any text of its own."""
    for said in all_said:
        number = hashlib.sha256(f"{said.item.id}\0{said.answer}".encode(errors="surrogatepass")).hexdigest()[:22]
        names = {"question_id": said.item.id, "prompt": said.item.question, "text": said.answer}
        yield {**names, "answer_id": number, "model_id": "trol_jax", "metadata": {}}


FORMATS: dict[str, tuple[str, Callable[[Sequence[Said], str], bytes]]] = {
    "vqav2": ("json", vqav2),
    "vizwiz": ("json", vizwiz),
    **dict.fromkeys(("mmbench", "mmbench_dev", "mmbench_cn", "mmbench_cn_dev"), ("xlsx", mmbench)),
    "mmmu": ("json", mmmu),
    "mm-vet": ("json", mm_vet),
    "mathvista": ("json", mathvista),
    "hallusionbench": ("json", hallusionbench),
    "llava": ("jsonl", llava),
}


def picture(item: Item) -> str:
    return PurePosixPath(item.images[0]).name


def whole(value: Any) -> bytes:
    return (json.dumps(plain(value), indent=1, default=str) + "\n").encode()


def encode(value: Any) -> bytes:
    return (json.dumps(plain(value), default=str) + "\n").encode()


def plain(value: Any) -> Any:
    """NaN, which parquet has for what is absent and JSON has not, becomes null."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
