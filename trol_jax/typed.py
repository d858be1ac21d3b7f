"""Frozen dataclasses from JSON-like dicts and back: every field must be there, and no other."""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, get_args

from trol_jax.errors import UserError

TYPE = "type"  # of the alternatives of a field, the class that was meant


def from_dict(raw: Mapping[str, Any], cls, where: str):
    """A typed copy of nested dicts; UserError for an unknown key, a missing key or a value of the wrong type."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{where} is {raw!r}, must hold settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {where}.{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise UserError(f"{where}.{key} is not a setting; {hint}")
    if missing := [name for name in fields if name not in raw]:
        raise UserError(f"{where} lacks the settings {', '.join(missing)}")
    return cls(**{name: _value(raw[name], field.type, f"{where}.{name}") for name, field in fields.items()})


def _value(value, wanted, place: str):
    if _is_choice(wanted):
        known = {cls.__name__: cls for cls in get_args(wanted)}
        chosen = value.get(TYPE) if isinstance(value, Mapping) else None
        if chosen not in known:
            raise UserError(f"{place}.{TYPE} is {chosen!r}, must be one of {', '.join(known)}")
        return from_dict({name: each for name, each in value.items() if name != TYPE}, known[chosen], place)
    if dataclasses.is_dataclass(wanted):
        return from_dict(value, wanted, place)
    value = _frozen(value)
    plain = isinstance(wanted, types.UnionType)
    accepted = wanted if plain else {int: int, float: (int, float), str: str, bool: bool}.get(wanted, object)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted in (int, float)):
        raise UserError(f"{place} is {value!r}, must be of type {wanted if plain else wanted.__name__}")
    return float(value) if wanted is float else value


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def to_dict(value) -> Any:
    """JSON-able; `from_dict` takes it back."""
    if not dataclasses.is_dataclass(value):
        return list(value) if isinstance(value, tuple) else value
    plain = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        mark = {TYPE: type(inner).__name__} if _is_choice(field.type) else {}
        plain[field.name] = mark | to_dict(inner) if mark else to_dict(inner)
    return plain


def _is_choice(wanted) -> bool:
    """Whether a field holds one of several dataclasses; other unions are of plain types."""
    return isinstance(wanted, types.UnionType) and all(map(dataclasses.is_dataclass, get_args(wanted)))
