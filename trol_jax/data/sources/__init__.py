"""The eleven sources of the training mixture, from the files that their authors released."""

import os
from collections.abc import Iterable

from trol_jax.data.sources import (
    allava,
    docowl,
    gllava,
    mathinstruct,
    mathplus,
    mathvision,
    minigemini,
    sharegpt4v,
)
from trol_jax.data.sources.sample import IMAGE, Sample
from trol_jax.data.sources.source import Source, Spec
from trol_jax.errors import UserError

__all__ = ["IMAGE", "SOURCES", "Sample", "Source", "Spec", "open_sources"]

CAPTIONS = "sharegpt4v_instruct_gpt4-vision_cap100k.json"
INSTRUCTIONS = "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"

# Files and counts: README of the original. Together 2,273,830.
SOURCES = {
    spec.name: spec
    for spec in (
        Spec("sharegpt4v_caption", CAPTIONS, 91_021, sharegpt4v.read, sharegpt4v.without_sam),
        Spec("sharegpt4v_instruct", INSTRUCTIONS, 664_703, sharegpt4v.read),
        Spec("allava_text", "Evol-Instruct-GPT4-Turbo-143K.json", 143_000, allava.read),
        Spec("minigemini", "minigemini_instruction.json", 27_670, minigemini.read, minigemini.documents),
        Spec("docdownstream", "train.jsonl", 574_268, docowl.read),
        Spec("docreason", "detailed_explanation.jsonl", 25_877, docowl.read),
        Spec("gllava_align", "gllava_align.parquet", 60_252, gllava.read, columns=gllava.COLUMNS),
        Spec("gllava_qa", "gllava_qa.parquet", 117_205, gllava.read, columns=gllava.COLUMNS),
        Spec("mathvision", "mathvision.parquet", 3_040, mathvision.read, columns=mathvision.COLUMNS),
        Spec("mathinstruct", "MathInstruct.json", 262_040, mathinstruct.read),
        Spec("mathplus", "mathplus.parquet", 304_754, mathplus.read, columns=mathplus.COLUMNS),
    )
}


def open_sources(root: str | os.PathLike, names: Iterable[str] | None = None) -> dict[str, Source]:
    """Sources by name, by default all. UserError for names that are not known and for files that are missing."""
    names = list(SOURCES if names is None else names)
    if unknown := [name for name in names if name not in SOURCES]:
        raise UserError(f"{unknown[0]!r} is no source; choose from {', '.join(SOURCES)}")
    if missing := [SOURCES[name].file for name in names if not os.path.isfile(os.path.join(root, SOURCES[name].file))]:
        raise UserError(f"{os.fspath(root)} lacks {', '.join(missing)}")
    return {name: Source(SOURCES[name], root) for name in names}
