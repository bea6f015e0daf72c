"""The JSON form of values, and whether two of them are equal: of one type, with equal parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ormsgpack
from pydantic import BaseModel

from haive_persistence.checkpointer.storage.messages import _EXACT
from haive_persistence.checkpointer.versions.diff.object_views import model_fields
from haive_persistence.checkpointer.versions.diff.shapes import ATOM, MAP, MEMBERS, TEXT, TYPE, opaque
from haive_persistence.checkpointer.versions.diff.views import view
from haive_persistence.errors import InvalidInputError

MAX_DEPTH: Final = 100
"""Containers in containers, in the JSON form. What is deeper is compared by the digest of its stored form."""

_SORTED: Final = _EXACT | ormsgpack.OPT_SORT_KEYS


def state_json(state: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a state, which `Diff.to_json_patch` is about.

    A JSON value stands for itself. Any other is an object whose `$type` names its class:

    * `{"$type": "tuple", "$items": [...]}`; likewise `set` (its items in the order of their JSON text),
      `collections.deque` and subclasses of `list`;
    * `{"$type": "package.module.Model", "field": ...}` for models, dataclasses, named tuples and others
      made of attributes; `$extra` and `$private` hold what a pydantic model has beside its fields;
    * `{"$type": "collections.OrderedDict", "$entries": {...}}`. Keys that are no text stand as JSON text. A
      dict that has them, or a key `$type`, is of this form too. The order of keys has no meaning;
    * `{"$type": "float", "value": "nan"}`, `{"$type": "decimal.Decimal", "value": "1.0"}` and the like;
    * `{"$type": "bytes", "size": 3, "digest": "…"}`, with the BLAKE2 digest (128 bits) of the bytes. Inside
      another value a `bytearray` is stored as bytes, and is shown as such.
      What can be stored but not taken apart (a pandas frame, say) has the digest of its stored form.

    Two states are equal here if and only if their JSON texts with sorted keys are. Secrets of pydantic's
    have a digest that differs between processes. What cannot be stored has its type alone.

    Args:
        state: Values by channel.

    Returns:
        An object of JSON values, which shares nothing with the state that can be changed.

    Raises:
        InvalidInputError: A value contains itself.
    """
    return {channel: to_json(state[channel], 1) for channel in state}


def to_json(value: Any, depth: int, path: frozenset[int] = frozenset()) -> Any:
    """The JSON form of a value so many levels inside a state."""
    kind, parts = view(value)
    if kind == TEXT:
        return parts
    if kind == ATOM:
        if depth == 1 and type(value) is bytearray:  # only a channel's own value is stored as one
            return {**parts, TYPE: "bytearray"}
        return dict(parts) if type(parts) is dict else parts
    if depth > MAX_DEPTH:
        return dict(opaque(value)[1])
    path = enter(path, value)
    if kind == MAP:
        return {key: to_json(part, depth + 1, path) for key, part in parts.items()}
    if kind == MEMBERS:
        return list(members_json(parts, depth, path).values())
    return [to_json(part, depth + 1, path) for part in parts]


def enter(path: frozenset[int], value: Any) -> frozenset[int]:
    """The containers around a part of `value`. Raises InvalidInputError if it is inside itself."""
    if id(value) in path:
        raise InvalidInputError("a state that contains itself cannot be compared: remove the cycle")
    return path | {id(value)}


def members_json(members: Any, depth: int, path: frozenset[int] = frozenset()) -> dict[str, Any]:
    """The JSON forms of a set's elements by their texts, in the order of these."""
    forms = [to_json(member, depth + 1, path) for member in members]
    return dict(sorted((json_text(form), form) for form in forms))


def json_text(form: Any) -> str:
    """The text that two JSON values share if they are equal, types included."""
    return json.dumps(form, sort_keys=True)


def key_text(key: Any) -> str:
    """The text that stands for a dict's key."""
    return json_text(to_json(key, 1))


# --- equality -------------------------------------------------------------------------------------


def element_key(value: Any, depth: int) -> bytes | str:
    """A key that equal values share and different ones do not."""
    if type(value) is str:
        return "s" + value
    packed = _pack(value, _SORTED)
    return json_text(to_json(value, depth)) if packed is None else packed


def packs_equal(before: Any, after: Any) -> bool:
    """True if both are plain data of equal bytes. False says nothing."""
    packed = _pack(before, _EXACT)
    return packed is not None and packed == _pack(after, _EXACT)


def runs_equal(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """True if two runs of elements are plain data, or models of it, and equal. False says nothing."""
    kinds = list(map(type, before))
    if kinds != list(map(type, after)):
        return False
    if issubclass(kinds[0], BaseModel):
        if not all(issubclass(kind, BaseModel) for kind in set(kinds)):
            return False
        before, after = model_fields(before), model_fields(after)
    return packs_equal(list(before), list(after))


def _pack(value: Any, option: int) -> bytes | None:
    """Exact bytes of plain data, types included; None if there are none."""
    try:
        return ormsgpack.packb(value, option=option)
    except (TypeError, ValueError):
        return None


def equal(before: Any, after: Any, depth: int, path: frozenset[int] = frozenset()) -> bool:
    """True if both have the same JSON form; containers are not built for it."""
    if before is after:
        return True
    cls = type(before)
    if cls is type(after):
        if issubclass(cls, BaseModel):
            if packs_equal(model_fields([before]), model_fields([after])):
                return True
        elif cls is str or cls is int or cls is bool:
            return bool(before == after)
        elif depth <= _PACKED_DEPTH and packs_equal(before, after):
            return True
    return _equal_parts(before, after, depth, path)


_PACKED_DEPTH: Final = 3  # deeper, what could not be packed would be tried again at each level


def _equal_parts(before: Any, after: Any, depth: int, path: frozenset[int]) -> bool:
    kind, parts = view(before)
    other_kind, others = view(after)
    if kind != other_kind:
        return False
    if kind in (ATOM, TEXT):
        return json_text(parts) == json_text(others)
    if depth > MAX_DEPTH:
        return json_text(opaque(before)[1]) == json_text(opaque(after)[1])
    path = enter(path, before)
    if kind == MEMBERS:
        return members_json(parts, depth, path).keys() == members_json(others, depth).keys()
    if len(parts) != len(others):
        return False
    if kind == MAP:
        return all(key in others and equal(part, others[key], depth + 1, path) for key, part in parts.items())
    return all(equal(parts[n], others[n], depth + 1, path) for n in range(len(parts)))
