"""JSON lines, an object a line, whose values must be what a dataset takes them for: a list is not a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Where = Callable[[], str]
"""Gives file and line for a message; only called for an error, as counting lines may take long."""


def parse_object(line: str, where: Where) -> dict[str, Any]:
    """Parse a line.

    Raises:
        ValueError: it is not JSON, not an object, or has a field twice.
    """
    try:
        row = json.loads(line, object_pairs_hook=_Fields)
    except ValueError as error:
        # Besides errors of JSON there are numbers of too many digits.
        raise ValueError(f"{where()} is not JSON: {getattr(error, 'msg', error)}") from None
    except RecursionError:
        raise ValueError(f"{where()} is not JSON that can be read: it is nested too deeply") from None
    if not isinstance(row, _Fields):
        raise ValueError(f"{where()}: an object {{...}} needed, got {line.strip()[:40]}")
    if row.repeated is not None:
        raise ValueError(f"{where()} has the field {row.repeated!r} twice")
    return row


class _Fields(dict[str, Any]):
    """The fields of an object, and the first name that occurs twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: str | None = None
        if len(self) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated = next(name for name in names if names.count(name) > 1)


def text_of(row: dict[str, Any], field: str, where: Where, null: bool = False) -> str:
    """Return the value of a field that holds a text.

    Args:
        row: the object.
        field: name of the field.
        where: gives file and line.
        null: whether null is allowed, as an empty text.

    Raises:
        ValueError: there is no such field, or its value is a number, a list or another value that is not a text.
    """
    value = _value(row, field, where)
    if value is None and null:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where()}: {field!r} is {json.dumps(value)[:40]}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where()}: {field!r} holds half of a surrogate pair, which is no character") from None
    return value


def label_of(row: dict[str, Any], field: str, where: Where) -> str:
    """Return the value of a field that holds a label: a text, a number, true or false; empty for null."""
    value = _value(row, field, where)
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list | dict):
        raise ValueError(f"{where()}: {field!r} is {json.dumps(value)[:40]}, not a text or a number")
    return text_of(row, field, where, null=True)


def _value(row: dict[str, Any], field: str, where: Where) -> Any:
    if field not in row:
        raise ValueError(f"{where()} has no field {field!r}; it has {', '.join(row) or 'none'}")
    return row[field]
