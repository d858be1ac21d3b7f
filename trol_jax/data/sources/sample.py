"""What every source gives, and the parts that readers of rows share.

Readers raise UserError that names the field; `source.Source` adds file and row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trol_jax.data.paths import normalise
from trol_jax.errors import UserError

IMAGE = "<image>"  # where a picture goes, in the text of every source
USER, ASSISTANT = "user", "assistant"
ROLES = {"human": USER, "gpt": ASSISTANT}  # of the LLaVA format
Turns = tuple[tuple[str, str], ...]
KINDS = {str: "text", list: "a list", dict: "an object", bytes: "bytes"}


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A conversation.

    id: as in the data, or the number of the row where the data has none; not always unique.
    turns: (role, text), role "user" or "assistant"; each picture is an IMAGE in the text.
    pictures: paths below the root, or encoded pictures as bytes; none, one or more.
    """

    source: str
    id: str
    turns: Turns
    pictures: tuple[str | bytes, ...] = ()


def field(row: Mapping, name: str, kind: type, where: str = "") -> Any:
    """row[name], which must be of this kind."""
    try:
        value = row[name]
    except KeyError:
        raise UserError(f"field {where}{name} is missing; fields here: {', '.join(row) or 'none'}") from None
    if not isinstance(value, kind):
        raise UserError(f"field {where}{name} is {str(value)[:40]!r}, must be {KINDS[kind]}")
    return value


def conversation(row: Mapping, name: str, role: str, text: str, roles: Mapping[str, str]) -> Turns:
    """Turns of a list of objects with a role and a text; `roles` maps those of the data to ours."""
    turns = field(row, name, list)
    if not turns:
        raise UserError(f"field {name} is empty, must hold at least one turn")
    return tuple(_turn(turn, f"{name}[{number}]", role, text, roles) for number, turn in enumerate(turns))


def _turn(turn: Any, where: str, role: str, text: str, roles: Mapping[str, str]) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise UserError(f"field {where} is {str(turn)[:40]!r}, must be an object")
    speaker = field(turn, role, str, f"{where}.")
    if speaker not in roles:
        raise UserError(f"field {where}.{role} is {speaker[:40]!r}, must be one of {', '.join(roles)}")
    return roles[speaker], field(turn, text, str, f"{where}.")


def paths(row: Mapping, name: str = "image") -> tuple[str, ...]:
    """Paths of pictures from a field that holds one, a list of them, null, or that is not there."""
    value = row.get(name)
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    for each in values:
        if not isinstance(each, str):
            raise UserError(f"field {name} is {str(value)[:40]!r}, must be a path or a list of paths")
    try:
        return tuple(map(normalise, values))
    except UserError as error:
        raise UserError(f"field {name}: {error}") from None


def identity(row: Mapping, number: int, *names: str) -> str:
    """The first of the fields that has a value, or the number of the row."""
    return str(next((row[name] for name in names if row.get(name) is not None), number))


def llava(row: Mapping, source: str, number: int) -> Sample:
    """A row of the LLaVA format: id (idx), conversations of {from: human or gpt, value}, and perhaps an image."""
    turns = conversation(row, "conversations", "from", "value", ROLES)
    return Sample(source, identity(row, number, "id", "idx"), turns, paths(row))
