"""Values in and out of a row.

A value is JSON: a dict with text keys, holding text, numbers, booleans, None, lists and dicts.
It is kept as jsonb, which filters can look into. jsonb cannot hold everything Python's JSON can:
it refuses NUL, NaN, infinities and lone surrogates, turns -0.0 into 0.0 and the float 1e16 into an
integer. A value with such a part is stored twice: exactly, as JSON text, and as comparable jsonb
that filters compare as they would compare the value itself. jsonb sorts keys: their order is stored
beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from haive_persistence._text import is_utf8
from haive_persistence.errors import DecodeError, EncodeError, InvalidInputError

# Starts an escape in comparable JSON; a code point that Unicode promises never to assign.
_ESCAPE = "\ufdd0"
# jsonb numbers reach 1e131071; Python's floats end at 1.8e308, and integers of more than 4300
# digits cannot be written as text, so nothing but infinity is ever this large.
_INFINITY = "1e131000"
_NAN = f'{{"{_ESCAPE}": "NaN"}}'
# Postgres and Python both parse recursively; neither is near its end here.
_MAX_DEPTH = 250

_write = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class Encoded(NamedTuple):
    """A value as it is bound to a statement: the columns of its row.

    `payload` is a sealed value; then `value` has only what filters may see of it.
    """

    value: str
    exact_json: bytes | None = None
    key_order: bytes | None = None
    payload: bytes | None = None


def encode(value: object) -> Encoded:
    """The columns for a value that is stored in the clear.

    Raises EncodeError, which names the part that is not JSON; nothing is converted on the quiet
    but tuples, which are JSON arrays, and subclasses of JSON's own types.
    """
    plain = checked(value)
    if check(plain, "value"):
        return Encoded(_text(plain), key_order=_order(plain))
    return Encoded(comparable_json(plain), to_json(plain))


def checked(value: object) -> dict[str, Any]:
    """The value as a dict. Raises EncodeError if it is none."""
    if not isinstance(value, Mapping):
        raise EncodeError(f"a store value is a dict with text keys, not {type(value).__name__}")
    return dict(value)


def decode(
    value: dict[str, Any] | None, exact_json: bytes | None = None, key_order: bytes | None = None
) -> dict[str, Any]:
    """The value that `encode` encoded. Raises DecodeError if a column is damaged."""
    if exact_json is not None:
        return from_json(exact_json)
    if value is None:
        return {}
    if key_order is None:
        return value
    try:
        return _reordered(value, key_order)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise DecodeError(f"the order of an item's keys is damaged: {error}") from error


def to_json(value: object) -> bytes:
    """Any value that `check` accepts, exactly."""
    return _text(value).encode("utf-8", "surrogatepass")


def from_json(data: bytes) -> dict[str, Any]:
    """The value that `to_json` wrote. Raises DecodeError if it is damaged."""
    try:
        result = json.loads(bytes(data).decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"an item's value is damaged: {error}") from error
    if not isinstance(result, dict):
        raise DecodeError("an item's value is damaged: it is no dict")
    return result


# --- the order of keys
#
# jsonb sorts the keys of an object by their length and bytes. Where a value has them in another order, the
# row has a few bytes more: for every object of two keys or more, its keys' places in the value. Objects come
# in jsonb's own order, each before those inside it. The first byte is the number of bytes of a place.


def _order(value: dict[str, Any]) -> bytes | None:
    places: list[int] = []
    if not _add_order(value, places):
        return None
    if max(places) < 256:
        return b"\x01" + bytes(places)
    return b"\x04" + b"".join(place.to_bytes(4, "big") for place in places)


def _add_order(value: object, places: list[int]) -> bool:
    """Add the places of the keys in `value`. True if any object has another order than jsonb's."""
    if isinstance(value, dict):
        keys = list(value)
        if len(keys) < 2:
            return _add_orders(value.values(), places)
        in_jsonb = sorted(range(len(keys)), key=lambda no: _jsonb_key(keys[no]))
        places += in_jsonb
        moved = in_jsonb != list(range(len(keys)))
        return _add_orders((value[keys[no]] for no in in_jsonb), places) or moved
    if isinstance(value, (list, tuple)):
        return _add_orders(value, places)
    return False


def _add_orders(parts: Iterable[object], places: list[int]) -> bool:
    moved = False
    for part in parts:
        if isinstance(part, (dict, list, tuple)):
            moved = _add_order(part, places) or moved
    return moved


def _jsonb_key(key: str) -> tuple[int, bytes]:
    data = key.encode()
    return len(data), data


def _reordered(value: dict[str, Any], order: bytes) -> dict[str, Any]:
    width = order[0]
    if width == 1 and len(order) == len(value) + 1:  # no other object has two keys
        entries: list[Any] = [None] * len(value)
        try:
            for place, entry in zip(order[1:], value.items(), strict=True):
                entries[place] = entry
            return dict(entries)
        except (IndexError, TypeError):  # changed in the table, as below
            return value
    places = [int.from_bytes(order[at : at + width], "big") for at in range(1, len(order), width)]
    try:
        result: dict[str, Any] = _in_order(value, iter(places))
    except StopIteration:  # somebody changed the value in the table: then it has jsonb's order
        return value
    return result


def _in_order(value: Any, places: Iterator[int]) -> Any:
    if isinstance(value, dict):
        if len(value) < 2:
            return {key: _in_order(part, places) for key, part in value.items()}
        own = [next(places) for _ in value]
        items = [(key, _in_order(part, places)) for key, part in value.items()]
        return dict(item for _, item in sorted(zip(own, items, strict=True), key=itemgetter(0)))
    if isinstance(value, list):
        return [_in_order(part, places) for part in value]
    return value


def comparable_json(value: Any) -> str:
    """The jsonb text that stands for any JSON value in comparisons: equal for equal values."""
    if value is None or value is True or value is False:
        return json.dumps(value)
    if isinstance(value, str):
        return _write(_escaped(value))
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_write(_escaped(k))}:{comparable_json(v)}" for k, v in value.items()) + "}"
    return "[" + ",".join(map(comparable_json, value)) + "]"


def escaped(text: str) -> str:
    """A text as it appears in comparable JSON."""
    return text if _plain(text) else _escaped(text)


def quoted(text: str) -> str:
    """`escaped`, as a JSON string; jsonpath writes its field names the same way."""
    return _write(escaped(text))


class _NotJson(Exception):
    """A part that is not JSON, and the way to it, innermost step first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []


def check(value: object, name: str) -> bool:
    """Whether jsonb keeps `value` as it is. Raises EncodeError, calling it `name`, if it is not JSON."""
    try:
        return _fits(value, 0)
    except _NotJson as error:
        raise EncodeError(f"{name}{''.join(reversed(error.steps))} {error.reason}") from None


def _fits(value: object, depth: int) -> bool:
    if isinstance(value, str):
        return _plain(value)
    if value is None or isinstance(value, int):
        return True
    if isinstance(value, float):
        return abs(value) < 1e16 and (value != 0.0 or math.copysign(1, value) > 0)
    if depth == _MAX_DEPTH:
        raise _NotJson(f"is nested more than {_MAX_DEPTH} levels deep, or contains itself")
    if isinstance(value, dict):
        return _keys_fit(value) & _parts_fit(value.items(), depth + 1)
    if isinstance(value, (list, tuple)):
        return _parts_fit(enumerate(value), depth + 1)
    raise _NotJson(
        f"is a {type(value).__name__}, which is not JSON: store it as text, or as a dict of its parts"
    )


def _keys_fit(value: dict[Any, object]) -> bool:
    for key in value:
        if not isinstance(key, str):
            raise _NotJson(f"has the key {key!r}: keys of a stored dict are text, write {str(key)!r}")
    return all(map(_plain, value))


def _parts_fit(parts: Iterable[tuple[object, object]], depth: int) -> bool:
    """Looks at every part, for one that is not JSON, also when an earlier one did not fit."""
    fits = True
    for step, part in parts:
        try:
            fits = _fits(part, depth) and fits
        except _NotJson as error:
            error.steps.append(f"[{step!r}]")
            raise
    return fits


def _plain(text: str) -> bool:
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and _ESCAPE not in text and is_utf8(text)


def _escaped(text: str) -> str:
    return "".join(
        _ESCAPE + f"{ord(c):04x}" if c in ("\0", _ESCAPE) or "\ud800" <= c <= "\udfff" else c for c in text
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return _NAN
    if math.isinf(value):
        return _INFINITY if value > 0 else f"-{_INFINITY}"
    return repr(float(value))


def _text(value: object) -> str:
    try:
        return _write(value)
    except ValueError as error:  # an integer of more digits than sys.set_int_max_str_digits allows
        raise InvalidInputError(f"the value cannot be written as text: {error}") from error
