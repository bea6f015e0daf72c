"""Equality and parts of values, as the merge needs them. No code of a user's class runs here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from enum import Enum
from math import copysign
from typing import Any, Final

from haive_persistence.checkpointer.storage.copies import Uncopyable, kind_of
from haive_persistence.codec.serialise import SafeSerializer
from haive_persistence.errors import EncodeError


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
"""Stands for a value that is not there: a channel, key or message that was not added yet, or was deleted."""

_BY_VALUE = frozenset({str, bytes, int, bool, type(None), set, frozenset})
_MAX_TOKEN_DEPTH = 100  # what is deeper is compared as it is stored
_serializer = SafeSerializer()


def same(a: Any, b: Any) -> bool:
    """True if both hold the same content, type by type: 1, 1.0 and True differ, NaN equals itself."""
    try:
        return _same(a, b)
    except RecursionError:  # deeper than Python's stack: the codec encodes on a larger one
        return type(a) is type(b) and _same_stored(a, b)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    cls = type(a)
    if cls is not type(b):
        return False
    if cls in _BY_VALUE:
        return bool(a == b)
    if cls is float:
        return bool(a == b and copysign(1, a) == copysign(1, b)) or (a != a and b != b)
    if cls is dict:
        return _same_dict(a, b)
    if cls is list or cls is tuple:
        return len(a) == len(b) and all(map(_same, a, b))
    one, other = parts_of(a), parts_of(b)
    if one is None or other is None:
        return _same_stored(a, b)
    return _same(one, other)


def _same_dict(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    if len(a) != len(b):
        return False
    for key, value in a.items():
        other = b.get(key, MISSING)
        if value is not other and not _same(value, other):
            return False
    return True


def _same_stored(a: Any, b: Any) -> bool:
    one = encoded(a)
    return one is not None and one == encoded(b)


def encoded(value: Any) -> bytes | None:
    """The bytes that the value is stored as, None if it cannot be stored."""
    try:
        return _serializer.dumps_typed(value)[1]
    except EncodeError:
        return None


def parts_of(value: Any) -> dict[Any, Any] | list[Any] | None:
    """The fields or items that an object is made of and can be rebuilt from; None if it is opaque.

    They may be the object's own: read them only.
    """
    kind = kind_of(type(value))
    if kind is None:
        return None
    try:
        state: dict[Any, Any] | list[Any] = kind.state(value)
    except Uncopyable:
        return None
    return state


def rebuild(ours: Any, theirs: Any, parts: dict[Any, Any] | list[Any]) -> Any:
    """An object of the class of both, made of these parts. Its constructor and validators do not run."""
    kind = kind_of(type(ours))
    assert kind is not None  # see `parts_of`
    one, other = kind.common(ours), kind.common(theirs)  # the fields that are set, None for all of them
    return kind.make([parts], None if one is None or other is None else one | other)[0]


def token(value: Any, depth: int = 0) -> Hashable:
    """A hashable stand-in: two values have the same one exactly if `same` is true for them."""
    cls = type(value)
    if cls in _BY_VALUE:
        return cls, frozenset(value) if cls is set else value
    if cls is float:
        return cls, value.hex()
    parts = parts_of(value) if depth < _MAX_TOKEN_DEPTH else None
    if parts is None:
        data = encoded(value)
        return cls, id(value) if data is None else data
    if isinstance(parts, Mapping):
        return cls, frozenset([(key, token(part, depth + 1)) for key, part in parts.items()])
    return cls, tuple([token(part, depth + 1) for part in parts])
