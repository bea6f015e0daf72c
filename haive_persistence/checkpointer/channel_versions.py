"""Versions of channels: what comes after one."""

from __future__ import annotations

from typing import Any

from haive_persistence.checkpointer.ids import shown
from haive_persistence.errors import InvalidInputError


def next_version(current: Any, channel: None = None) -> Any:
    """The version after `current`: the next integer, or text as imported threads have it.

    Raises InvalidInputError if it is no version.
    """
    if current is None:
        return 1
    if isinstance(current, (int, float)):
        return current + 1
    number, _, fraction = current.partition(".") if isinstance(current, str) else ("", "", "")
    if not number.isdecimal() or len(number) > 100:
        raise InvalidInputError(f"{shown(current)} is no version of a channel: versions are numbers")
    return f"{int(number) + 1:032}.{fraction or '0'}"
