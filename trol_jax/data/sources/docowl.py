"""mPLUG-DocOwl 1.5: DocDownstream-1.0 (ten sets of documents) and DocReason25K (answers with an explanation).

Paths begin with "./imgs/", a picture's mark is "<|image|>", one for each path of the list.
https://github.com/X-PLUG/mPLUG-DocOwl/tree/main/DocOwl1.5
"""

from collections.abc import Mapping

from trol_jax.data.sources.sample import ASSISTANT, IMAGE, USER, Sample, conversation, paths

ROLES = {"user": USER, "assistant": ASSISTANT}


def read(row: Mapping, source: str, number: int) -> Sample:
    turns = conversation(row, "messages", "role", "content", ROLES)
    turns = tuple((role, text.replace("<|image|>", IMAGE)) for role, text in turns)
    return Sample(source, str(number), turns, paths(row))
