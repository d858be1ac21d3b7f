"""Frozen dataclasses from JSON-like dicts and back: what has no default must be there, and nothing unknown may be."""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, get_args

from trol_jax.errors import UserError

TYPE = "type"  # of the alternatives of a field, the class that was meant; the first where nothing is said


def from_dict(raw: Mapping[str, Any], cls, where: str, old: bool = False):
    """A typed copy of nested dicts; UserError for an unknown key, a missing key or a value of the wrong type.

    old: it may have been written before some of the fields were there; those have defaults, which count for it.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"{where} is {raw!r}, must hold settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {where}.{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise UserError(f"{where}.{key} is not a setting; {hint}")
    given = {name: field for name, field in fields.items() if name in raw}
    if missing := [name for name in fields.keys() - given if not (old and _has_default(fields[name]))]:
        raise UserError(f"{where} lacks the settings {', '.join(name for name in fields if name in missing)}")
    return cls(**{name: _value(raw[name], field.type, f"{where}.{name}", old) for name, field in given.items()})


def _has_default(field: dataclasses.Field) -> bool:
    return (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


def _value(value, wanted, place: str, old: bool):
    if _is_choice(wanted):
        known = {cls.__name__: cls for cls in get_args(wanted)}
        chosen = value.get(TYPE, next(iter(known))) if isinstance(value, Mapping) else None
        if chosen not in known:
            raise UserError(f"{place}.{TYPE} is {chosen!r}, must be one of {', '.join(known)}")
        return from_dict({name: each for name, each in value.items() if name != TYPE}, known[chosen], place, old)
    if dataclasses.is_dataclass(wanted):
        return from_dict(value, wanted, place, old)
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
