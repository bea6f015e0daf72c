"""Views of JSON values, of Python's own types and of their subclasses."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from haive_persistence.checkpointer.versions.diff.shapes import (
    ATOM,
    LIST,
    MAP,
    MEMBERS,
    TEXT,
    TYPE,
    Entries,
    Members,
    View,
    Viewer,
    digest,
    fields_of,
    opaque,
    own_attributes,
    type_name,
)
from haive_persistence.codec.standard_types import CORE_URLS

# --- plain JSON ----------------------------------------------------------------------------------


def view_atom(value: Any) -> View:
    return ATOM, value


def view_int(value: int) -> View:
    if value.bit_length() <= _MAX_BITS:
        return ATOM, value
    return ATOM, {TYPE: "int", "value": hex(value)}


_MAX_BITS: Final = 8192  # Python refuses to write integers of more than 4,300 digits as decimal text


def view_float(value: float) -> View:
    if math.isfinite(value):
        return ATOM, value
    return ATOM, {TYPE: "float", "value": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def view_bytes(value: Any) -> View:
    return ATOM, {TYPE: "bytes", **_bytes(value)}


def view_text(value: str) -> View:
    return TEXT, value


def view_list(value: Any) -> View:
    return LIST, value


def view_entries(value: Any) -> View:
    return MAP, value


def view_members(value: Any) -> View:
    return MEMBERS, value


def view_dict(value: dict[Any, Any]) -> View:
    if TYPE not in value and all(type(key) is str for key in value):
        return MAP, value
    return MAP, {TYPE: "dict", "$entries": _with_text_keys(value)}


def _with_text_keys(value: dict[Any, Any]) -> Entries:
    """The entries under the JSON text of each key, unless all keys are text."""
    if all(type(key) is str for key in dict.__iter__(value)):
        return Entries(dict.items(value))
    from haive_persistence.checkpointer.versions.diff.canonical import key_text

    return Entries((key_text(key), item) for key, item in dict.items(value))


# --- containers and scalars of Python, and their subclasses ---------------------------------------


def tagged(cls: type, take: Callable[[Any], dict[str, Any]], kind: int = MAP) -> Viewer:
    """The view of instances as their type, what `take` gives, and attributes of their own."""
    name = type_name(cls)

    def look(value: Any) -> View:
        parts = {TYPE: name, **take(value)}
        if own := fields_of(value):
            return MAP, {**parts, "$attributes": Entries(own_attributes(cls, own))}
        return kind, parts

    return look


def _dict_items(value: Any) -> dict[str, Any]:
    return {"$entries": _with_text_keys(value)}


def _list_items(value: Any) -> dict[str, Any]:
    return {"$items": list(list.__iter__(value))}


def _tuple_items(value: Any) -> dict[str, Any]:
    return {"$items": list(tuple.__iter__(value))}


def _deque_items(value: Any) -> dict[str, Any]:
    maxlen = deque.maxlen.__get__(value)
    return {"maxlen": maxlen, "$items": list(deque.__iter__(value))}


def _set_items(value: Any) -> dict[str, Any]:
    iterate: Any = set.__iter__ if isinstance(value, set) else frozenset.__iter__
    return {"$items": Members(iterate(value))}


def _bytes(value: Any) -> dict[str, Any]:
    data = bytes(memoryview(value))
    return {"size": len(data), "digest": digest(data)}


def _exception(value: Any) -> dict[str, Any]:
    args: Any = BaseException.__dict__["args"]
    return {"args": list(args.__get__(value))}


def _zoned(value: Any, base: Any) -> dict[str, Any]:
    """A moment without its zone, and the zone beside it: a zone's own code does not run."""
    naive = base.replace(value, tzinfo=None)
    parts: dict[str, Any] = {"value": base.isoformat(naive)}
    zone = base.tzinfo.__get__(value)
    if zone is not None:
        parts["tzinfo"] = _zone(zone)
    if base.fold.__get__(value):
        parts["fold"] = 1
    return parts


def _zone(zone: Any) -> Any:
    if type(zone) is timezone:
        return timezone.__repr__(zone)
    return {TYPE: type_name(ZoneInfo), **_zone_key(zone)} if type(zone) is ZoneInfo else opaque(zone)[1]


def _datetime(value: Any) -> dict[str, Any]:
    return _zoned(value if type(value) is datetime else _plain_datetime(value), datetime)


def _plain_datetime(value: Any) -> datetime:
    names = ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo", "fold")
    return datetime(**{name: datetime.__getattribute__(value, name) for name in names})


def _time(value: Any) -> dict[str, Any]:
    return _zoned(value, time)


def _zone_key(value: Any) -> dict[str, Any]:
    return {"key": object.__getattribute__(value, "key")}


def _pattern(value: Any) -> dict[str, Any]:
    return {"pattern": value.pattern, "flags": value.flags}


def _as_text(base: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {"value": base.__str__(value)}


def _as_repr(base: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {"value": base.__repr__(value)}


def view_url(cls: type) -> Viewer:
    """The view of pydantic's URLs, which hold one of its core's."""
    name = type_name(cls)

    def look(value: Any) -> View:
        own = dict(fields_of(value))
        core = own.pop("_url", value)
        parts = {TYPE: name, "value": str(core) if isinstance(core, CORE_URLS) else core}
        return (MAP, {**parts, "$attributes": Entries(own)}) if own else (ATOM, parts)

    return look


TAKES: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    dict: _dict_items,
    list: _list_items,
    tuple: _tuple_items,
    deque: _deque_items,
    set: _set_items,
    frozenset: _set_items,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    str: lambda value: {"value": str.__str__(value)},
    int: lambda value: {"value": int.__int__(value)},
    float: lambda value: {"value": float.__float__(value)},
    complex: _as_repr(complex),
    datetime: _datetime,
    date: lambda value: {"value": date.isoformat(value)},
    time: _time,
    timedelta: _as_text(timedelta),
    timezone: _as_repr(timezone),
    ZoneInfo: _zone_key,
    Decimal: _as_text(Decimal),
    UUID: _as_text(UUID),
    PurePath: _as_text(PurePath),
    **{cls: _as_text(cls) for cls in (IPv4Address, IPv4Network, IPv6Address, IPv6Network)},
    **{cls: _as_text(cls) for cls in (IPv4Interface, IPv6Interface)},
    range: _as_repr(range),
    slice: _as_repr(slice),
    re.Pattern: _pattern,
    BaseException: _exception,
}
_WITH_PARTS: Final = (dict, list, tuple, deque, set, frozenset, str, int, float, re.Pattern, BaseException)
_WITHOUT_ATTRIBUTES: Final = (UUID, PurePath, IPv4Address, IPv4Network, IPv6Address, IPv6Network)


def view_standard(cls: type) -> Viewer:
    base = next(base for base in cls.__mro__ if base in TAKES)
    take = TAKES[base]
    if issubclass(cls, _WITHOUT_ATTRIBUTES):  # theirs are parts or caches of the value
        name = type_name(cls)
        return lambda value: (ATOM, {TYPE: name, **take(value)})
    return tagged(cls, take, MAP if base in _WITH_PARTS else ATOM)
