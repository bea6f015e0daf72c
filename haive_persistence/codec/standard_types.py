"""Builders of Python's own types and of subclasses, which run no code of a subclass."""

from __future__ import annotations

import pathlib
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any
from uuid import UUID

from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_POS_ARGS, EXT_CONSTRUCTOR_SINGLE_ARG
from pydantic import AnyUrl, PostgresDsn
from pydantic_core import MultiHostUrl, Url

from haive_persistence.codec import frames
from haive_persistence.codec.bounded import pattern, zone
from haive_persistence.codec.core_schema import CodeNeededError, wrap_url
from haive_persistence.codec.hash_flooding import check_hashes

Builder = Callable[[int, Any, Mapping[str, Any]], Any]
"""Called with the extension code, the payload and the extras."""

FROM_ISO = ("datetime", "datetime", "fromisoformat")
"""The one method that stored data may name."""


def attribute(module: str, name: str) -> Any:
    """The object that a loaded module has under a name, or None.

    Read past `__getattr__` and `__getattribute__`: a lazy module's may import.
    """
    found = sys.modules.get(module)
    try:
        return object.__getattribute__(found, "__dict__").get(name)
    except AttributeError:
        return None


def call(cls: Callable[..., Any], code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    """Calls a class that is trusted, or one of Python's own."""
    if code == EXT_CONSTRUCTOR_SINGLE_ARG:
        return cls(payload)
    if code == EXT_CONSTRUCTOR_POS_ARGS:
        return cls(*payload)
    return cls(**payload)


def hashable(value: Any) -> Any:
    """LangGraph writes tuples as arrays; where only a hashable thing can stand, it was a tuple."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value


def attributes(extras: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes beside an object's fields. Raises CodeNeededError if some could not be stored."""
    if left_out := extras.get("left_out"):
        raise CodeNeededError(f"its attribute {left_out[0]!r} could not be stored")
    return extras.get("attributes") or {}


def with_attributes(made: Any, extras: Mapping[str, Any]) -> Any:
    if "attributes" in extras or "left_out" in extras:
        vars(made).update(attributes(extras))
    return made


def build_value(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    """An instance of a standard type or of a subclass, made and filled by the standard type."""
    base = next(base for base in cls.__mro__ if base in STANDARD)
    return with_attributes(STANDARD[base](cls, code, payload), extras)


def _made(base: Any) -> Callable[[Any, int, Any], Any]:
    """For immutable types: all is done by `__new__`."""

    def make(cls: Any, code: int, payload: Any) -> Any:
        _check(base, payload)
        return call(partial(base.__new__, cls), code, payload, {})

    return make


def _check(base: Any, payload: Any) -> None:
    """Refuses what a constructor would convert, in the worst case `bytes(10**10)`."""
    expected = {str: str, bytes: bytes, int: int, float: float, tuple: list, list: list}.get(base)
    if expected is not None and type(payload) is not expected:
        raise ValueError(f"not the value of a {base.__name__}")


def _filled(base: Any) -> Callable[[Any, int, Any], Any]:
    """For types that are filled after they are made."""

    def make(cls: Any, code: int, payload: Any) -> Any:
        _check(base, payload)
        made = base.__new__(cls)
        call(partial(base.__init__, made), code, payload, {})
        return made

    return make


def _make_set(base: Any) -> Callable[[Any, int, Any], Any]:
    def make(cls: Any, code: int, payload: Any) -> Any:
        try:
            check_hashes(payload)
            items = base(payload)
        except TypeError:
            payload = [*map(hashable, payload)]
            check_hashes(payload)
            items = base(payload)
        if base is frozenset:
            return frozenset.__new__(cls, items)
        made = set.__new__(cls)
        set.update(made, items)
        return made

    return make


def _check_dict(payload: Any) -> None:
    """Raise ValueError for a list of pairs: nothing has checked its keys."""
    if not isinstance(payload, dict):
        raise ValueError("not the entries of a dict")


def _make_ordered(cls: Any, code: int, payload: Any) -> Any:
    made: Any = OrderedDict.__new__(cls)
    for key, value in dict.items(payload):
        OrderedDict.__setitem__(made, key, value)
    return made


def _make_dict(cls: Any, code: int, payload: Any) -> Any:
    _check_dict(payload)
    made = dict.__new__(cls)
    dict.update(made, payload)
    return made


def _make_path(cls: Any, code: int, payload: Any) -> Any:
    own = [
        base for base in cls.__mro__ if base.__module__.partition(".")[0] != "pathlib" and base is not object
    ]
    if any({"__new__", "__init__", "with_segments"} & vars(base).keys() for base in own):
        raise CodeNeededError("it has a constructor of its own")
    return call(cls, code, payload, {})


def _default_dict(code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    """A defaultdict, whose factory must be one of Python's own types."""
    name = extras.get("factory")
    _, content = payload
    _check_dict(content)
    return defaultdict(None if name is None else FACTORIES[name], content)


FACTORIES: dict[str, type] = {
    cls.__name__: cls
    for cls in (list, dict, set, tuple, frozenset, str, int, float, bool, bytes, deque, OrderedDict, Counter)
}
"""Factories that a stored defaultdict may have, by name."""


CORE_URLS = (Url, MultiHostUrl)
_SINGLE_HOST: Any = AnyUrl.__base__
_MULTI_HOST: Any = PostgresDsn.__base__
URLS: tuple[Any, ...] = (*CORE_URLS, _SINGLE_HOST, _MULTI_HOST)
"""Pydantic's URLs: those of its core, and the base classes of those that wrap one of them."""


def build_url(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    """A URL, parsed by pydantic's core; restrictions of its class are not applied again."""
    if type(payload) is not str:
        raise ValueError("not the text of a URL")
    parsed = (MultiHostUrl if issubclass(cls, (MultiHostUrl, _MULTI_HOST)) else Url)(payload)
    if str(parsed) != payload:
        raise CodeNeededError("only its class knows how its text was parsed")
    if cls in CORE_URLS:
        return parsed
    return with_attributes(wrap_url(cls, parsed), extras)


# --- builders of standard types, whatever is loaded or patched --------------------------------


def _from_iso(code: int, payload: Any, extras: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(payload)


def _dict(code: int, payload: Any, extras: Mapping[str, Any]) -> dict[Any, Any]:
    check_hashes([hashable(key) for key, _ in payload])
    return {hashable(key): value for key, value in payload}


def _str(code: int, payload: Any, extras: Mapping[str, Any]) -> str:
    data, *how = payload
    if how != ["utf-8", "surrogatepass"]:
        raise ValueError("not a form that this package writes")
    return bytes.decode(data, "utf-8", "surrogatepass")


def _int(code: int, payload: Any, extras: Mapping[str, Any]) -> int:
    digits, base = payload
    if base != 16:
        raise ValueError("not a form that this package writes")
    return int(digits, 16)


def _number_of_numpy(name: str, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    cls = attribute("numpy", name)
    if cls is None:
        raise CodeNeededError("import numpy before reading")
    if type(payload) not in (bool, int, float, str, bytes):
        raise ValueError("not a number")
    if name == "bytes_" and type(payload) is not bytes:  # bytes_(3 << 30) would be memory for so many
        raise ValueError("not bytes")
    return cls(payload)


def array(numpy: Any, kind: Any, shape: list[int], order: str, buffer: bytes) -> Any:
    """A numpy array of its own memory (so that it can be written to), never of objects.

    Raises TypeError or ValueError if these are not the parts of one.
    """
    if type(buffer) is not bytes:  # bytearray(3 << 30) would be memory for so many
        raise ValueError("not the contents of an array")
    fields = [_field(*field) for field in kind] if isinstance(kind, list) else _field("", kind)[1]
    dtype = numpy.dtype(fields)
    return numpy.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape, order=order)


_DTYPE = re.compile(r"[<>|=][biufcmMSUV]\d*(\[\w+\])?")


def _field(name: str, kind: str, *shape: Any) -> tuple[Any, ...]:
    # numpy.dtype() understands much more than what dtype.str yields, some of it by importing
    if not _DTYPE.fullmatch(kind):
        raise ValueError(f"not a type of numbers: {kind!r}")
    return name, kind, *(hashable(part) for part in shape)


def _zone(code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    return zone(payload)


def _pattern(code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    return pattern(*payload)


STANDARD: dict[Any, Callable[[Any, int, Any], Any]] = {
    deque: _filled(deque),
    UUID: _filled(UUID),
    **{cls: _filled(cls) for cls in (IPv4Address, IPv4Interface, IPv4Network)},
    **{cls: _filled(cls) for cls in (IPv6Address, IPv6Interface, IPv6Network)},
    **{cls: _made(cls) for cls in (Decimal, timedelta, datetime, date, time)},
    **{cls: _made(cls) for cls in (str, bytes, int, float, tuple)},
    set: _make_set(set),
    frozenset: _make_set(frozenset),
    list: _filled(list),
    OrderedDict: _make_ordered,
    dict: _make_dict,
    pathlib.PurePath: _make_path,
}
"""Per standard type: makes an instance of it or of a subclass without running a subclass's code."""

_VALUES: tuple[type, ...] = (
    deque,
    UUID,
    Decimal,
    timedelta,
    date,
    time,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

OWN: dict[tuple[str, str], Builder] = {
    **{(cls.__module__, cls.__name__): partial(call, cls) for cls in _VALUES},
    ("datetime", "datetime"): partial(call, datetime),
    ("datetime", "datetime.fromisoformat"): _from_iso,
    ("datetime", "timezone"): partial(call, timezone),
    ("zoneinfo", "ZoneInfo"): _zone,
    ("re", "compile"): _pattern,
    ("builtins", "set"): partial(build_value, set),
    ("builtins", "frozenset"): partial(build_value, frozenset),
    ("builtins", "tuple"): partial(build_value, tuple),
    ("collections", "OrderedDict"): partial(build_value, OrderedDict),
    ("collections", "Counter"): partial(build_value, Counter),
    ("collections", "defaultdict"): _default_dict,
    # forms that only this package writes; LangGraph's permissive reader understands them too
    ("builtins", "dict"): _dict,
    ("builtins", "str"): _str,
    ("builtins", "int"): _int,
    **{
        ("numpy", name): partial(_number_of_numpy, name)
        for name in ("bool_", "float16", "float32", "float64", "str_", "bytes_", *_NUMBERS)
    },
    **{("pandas", name): partial(frames.build, name) for name in frames.NAMES},
    # Python 3.13 keeps pathlib's classes in a private module
    **{
        (module, name): partial(call, getattr(pathlib, name))
        for module in ("pathlib", "pathlib._local")
        for name in _PATHS
    },
}
"""Builders of the standard library's types, by the name they are stored under."""
