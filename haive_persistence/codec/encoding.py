"""Values to msgpack, in the form LangGraph's own serialiser writes and reads.

Most values go the fast way: one call of `ormsgpack.packb`, which asks `_default` about every object
it does not know, and refuses what it cannot say (a lone surrogate, an integer beyond 64 bits). It also
refuses dict keys that are not text, because allowing them would turn enums, dates and UUIDs into text
silently; where the keys are seen to be numbers and the like, `_default_any_key` allows them. What is
still refused, `_Careful` walks in Python, rewrites just those parts, and names the path of a part that
cannot be stored at all.

An object becomes an extension `Ext(code, (module, name, payload, …))`. The codes and payloads are
LangGraph's. Where LangGraph would lose something, a form is used that its permissive reader also
restores exactly (for instance `builtins.int("0x…", 16)`); what it knows no form for is added as a
trailing map, which it ignores.
"""

from __future__ import annotations

import dataclasses
import decimal
import ipaddress
import pathlib
import re
import sys
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_DELTA_SNAPSHOT,
    EXT_METHOD_SINGLE_ARG,
    EXT_NUMPY_ARRAY,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)
from langgraph.checkpoint.serde.types import SendProtocol, _DeltaSnapshot
from langgraph.store.base import Item

from haive_persistence.errors import EncodeError

Described = tuple[int, Any] | str
"""An extension code and its payload, or a plain string that stands for the object."""

Describer = Callable[[Any], Described]
Path = tuple[Any, str] | None

_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_EXACT = frozenset({str, int, float, bool, bytes, type(None)})
_LEAVES = _EXACT | {bytearray, memoryview}
_MAX_DESCRIBERS = 4096
_describers: dict[type, Describer] = {}


def encode(value: Any) -> bytes:
    """Serialise `value`; EncodeError names the part that cannot be stored."""
    try:
        return _pack(value)
    except ormsgpack.MsgpackEncodeError:
        pass
    try:
        return _pack_any_key(value)
    except (ormsgpack.MsgpackEncodeError, RecursionError):
        return _Careful().encode(value)


def _pack(value: Any) -> bytes:
    # a function of its own: writing must reach Python's recursion limit before reading would
    return ormsgpack.packb(value, default=_default, option=_OPTIONS)


def _default(obj: Any) -> Any:
    described = (_describers.get(type(obj)) or _describer(obj))(obj)
    if isinstance(described, str):
        return described
    code, payload = described
    return ormsgpack.Ext(code, _pack(payload))


def _pack_any_key(value: Any) -> bytes:
    if not _has_plain_keys(value):
        raise ormsgpack.MsgpackEncodeError("a dict key that msgpack would change")
    return ormsgpack.packb(value, default=_default_any_key, option=_OPTIONS | ormsgpack.OPT_NON_STR_KEYS)


def _default_any_key(obj: Any) -> Any:
    described = (_describers.get(type(obj)) or _describer(obj))(obj)
    if isinstance(described, str):
        return described
    code, payload = described
    return ormsgpack.Ext(code, _pack_any_key(payload))


def _has_plain_keys(value: Any) -> bool:
    """Whether msgpack keeps the keys of all dicts in this value (but for those inside objects)."""
    if isinstance(value, dict):
        if not _EXACT.issuperset(map(type, value)):
            return False
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return _LEAVES.issuperset(map(type, value)) or all(
        _has_plain_keys(part) for part in value if type(part) not in _LEAVES
    )


def _describer(obj: Any) -> Describer:
    """How objects of this class are written; remembered per class."""
    cls = obj.__class__
    for recognises, make in _KINDS:
        if recognises(obj):
            describer = make(cls)
            break
    else:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not a type that can be stored")
    if cls is type(obj):
        if len(_describers) >= _MAX_DESCRIBERS:
            _describers.clear()
        _describers[cls] = describer
    return describer


# --- what an object is, in the order LangGraph asks -------------------------------------------


def _has(method: str) -> Callable[[Any], bool]:
    return lambda obj: callable(getattr(obj, method, None)) and not isinstance(obj, type)


def _is(*classes: type) -> Callable[[Any], bool]:
    return lambda obj: isinstance(obj, classes)


def _is_array(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _is_number_of_numpy(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.generic) and obj.dtype.kind in "biuf"


# --- how it is written ------------------------------------------------------------------------


def _extras(cls: type) -> tuple[dict[str, str], ...]:
    """Where a class nested in another is found; LangGraph itself only looks at module level."""
    if cls.__qualname__ == cls.__name__ or "<locals>" in cls.__qualname__:
        return ()
    return ({"qualname": cls.__qualname__},)


def _writes(code: int, payload: Callable[[Any], Any]) -> Callable[[type], Describer]:
    """A maker of describers for classes whose payload is a function of the object alone."""

    def make(cls: type) -> Describer:
        module, name, extras = cls.__module__, cls.__name__, _extras(cls)
        return lambda obj: (code, (module, name, payload(obj), *extras))

    return make


def _model(cls: type) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)
    return lambda obj: (EXT_PYDANTIC_V2, (module, name, obj.model_dump(), "model_validate_json", *extras))


def _dataclass(cls: type) -> Describer:
    # not dataclasses.asdict: it deep-copies, and flattens nested types
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return lambda obj: (
        EXT_CONSTRUCTOR_KW_ARGS,
        (module, name, {field: getattr(obj, field) for field in names}, *extras),
    )


def _enum(cls: type) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)

    def describe(obj: Enum) -> Described:
        value = obj.value
        if type(value) in _EXACT:
            return EXT_CONSTRUCTOR_SINGLE_ARG, (module, name, value, *extras)
        # a tuple, say, comes back as a list and is no longer a value of the enum: add the name
        found = {"member": obj.name, **(extras[0] if extras else {})}
        return EXT_CONSTRUCTOR_SINGLE_ARG, (module, name, value, found)

    return describe


def _datetime(cls: type) -> Describer:
    module, name = cls.__module__, cls.__name__

    def describe(obj: datetime) -> Described:
        zone = obj.tzinfo
        if cls is datetime and (obj.fold or not _iso_keeps(zone)):
            parts = {part: getattr(obj, part) for part in _DATETIME_PARTS}
            return EXT_CONSTRUCTOR_KW_ARGS, (module, name, parts)
        return EXT_METHOD_SINGLE_ARG, (module, name, obj.isoformat(), "fromisoformat")

    return describe


_DATETIME_PARTS = ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo", "fold")


def _iso_keeps(zone: Any) -> bool:
    """Whether ISO 8601 text keeps this time zone (foreign tzinfo classes keep only their offset)."""
    if zone is None or zone is timezone.utc:
        return True
    if isinstance(zone, ZoneInfo):
        return not _has_key(zone)
    return not isinstance(zone, timezone) or len(_timezone_args(zone)) == 1


def _has_key(zone: ZoneInfo) -> bool:
    return (
        getattr(zone, "key", None) is not None
    )  # not if it was made from a file, whatever the type stub says


def _timezone_args(zone: timezone) -> tuple[Any, ...]:
    return zone.__getinitargs__()  # type: ignore[attr-defined, no-any-return]


def _zone(cls: type) -> Describer:
    def describe(obj: ZoneInfo) -> Described:
        if not _has_key(obj):
            raise TypeError("a ZoneInfo made from a file has no key by which it could be restored")
        return EXT_CONSTRUCTOR_SINGLE_ARG, (cls.__module__, cls.__name__, obj.key)

    return describe


def _deque(cls: type) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)

    def describe(obj: deque[Any]) -> Described:
        if obj.maxlen is None:
            return EXT_CONSTRUCTOR_SINGLE_ARG, (module, name, tuple(obj), *extras)
        return EXT_CONSTRUCTOR_POS_ARGS, (module, name, (tuple(obj), obj.maxlen), *extras)

    return describe


def _send_args(obj: Any) -> tuple[Any, ...]:
    timeout = getattr(obj, "timeout", None)
    return (obj.node, obj.arg) if timeout is None else (obj.node, obj.arg, timeout)


def _array(cls: type) -> Describer:
    def describe(obj: Any) -> Described:
        if obj.dtype.hasobject:
            raise TypeError("a numpy array of Python objects cannot be stored; store obj.tolist()")
        if "numpy.ma" in sys.modules and isinstance(obj, sys.modules["numpy.ma"].MaskedArray):
            raise TypeError("a masked array would lose its mask; store its data and mask apart")
        order = "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
        kind = obj.dtype.descr if obj.dtype.names else obj.dtype.str
        return EXT_NUMPY_ARRAY, (kind, obj.shape, order, obj.tobytes(order="A"))

    return describe


def _number_of_numpy(cls: type) -> Describer:
    name = "bool_" if cls.__name__ == "bool" else cls.__name__
    return lambda obj: (EXT_CONSTRUCTOR_SINGLE_ARG, ("numpy", name, obj.item()))


_SINGLE, _POSITIONAL, _KEYWORDS = (
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_KW_ARGS,
)
_TIME_PARTS = ("hour", "minute", "second", "microsecond", "tzinfo", "fold")
_IP_CLASSES = (
    ipaddress.IPv4Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Address,
    ipaddress.IPv6Interface,
    ipaddress.IPv6Network,
)
_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[type], Describer]], ...] = (
    (_is(_DeltaSnapshot), lambda cls: lambda obj: (EXT_DELTA_SNAPSHOT, obj.value)),
    (_has("model_dump"), _model),
    (_has("get_secret_value"), _writes(_SINGLE, lambda obj: obj.get_secret_value())),
    (_has("dict"), _writes(EXT_PYDANTIC_V1, lambda obj: obj.dict())),
    (_has("_asdict"), _writes(_KEYWORDS, lambda obj: obj._asdict())),
    (_is(pathlib.PurePath), _writes(_POSITIONAL, lambda obj: obj.parts)),
    (
        _is(re.Pattern),
        lambda cls: lambda obj: (_POSITIONAL, ("re", "compile", (obj.pattern, obj.flags))),
    ),
    (_is(UUID), _writes(_SINGLE, lambda obj: obj.hex)),
    (_is(decimal.Decimal), _writes(_SINGLE, str)),
    (_is(set, frozenset), _writes(_SINGLE, tuple)),
    (_is(deque), _deque),
    (_is(*_IP_CLASSES), _writes(_SINGLE, str)),
    (_is(datetime), _datetime),
    (_is(timedelta), _writes(_POSITIONAL, lambda obj: (obj.days, obj.seconds, obj.microseconds))),
    (_is(date), _writes(_POSITIONAL, lambda obj: (obj.year, obj.month, obj.day))),
    (_is(time), _writes(_KEYWORDS, lambda obj: {part: getattr(obj, part) for part in _TIME_PARTS})),
    (_is(timezone), _writes(_POSITIONAL, _timezone_args)),
    (_is(ZoneInfo), _zone),
    (_is(Enum), _enum),
    (_is(SendProtocol), _writes(_POSITIONAL, _send_args)),
    (lambda obj: dataclasses.is_dataclass(obj) and not isinstance(obj, type), _dataclass),
    (_is(Item), _writes(_KEYWORDS, lambda obj: {slot: getattr(obj, slot) for slot in obj.__slots__})),
    (_is_array, _array),
    (_is_number_of_numpy, _number_of_numpy),
    (_is(BaseException), lambda cls: repr),
)

# --- the careful way --------------------------------------------------------------------------

_ATOMS = frozenset({float, bool, bytes, bytearray, memoryview, type(None)})
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


class _Careful:
    """Rewrites the parts of a value that msgpack cannot say, and knows where it is."""

    def __init__(self) -> None:
        self._path: list[tuple[str, Any]] = []  # where the walk is; read when something fails

    def encode(self, value: Any) -> bytes:
        try:
            return self._pack(value)
        except RecursionError:
            text = "it contains itself, or is nested too deeply"
            raise EncodeError(f"cannot store value{_where(self._path[:4])}…: {text}") from None
        except Exception as exc:
            raise EncodeError(f"cannot store value{_where(self._path)}: {exc}") from exc

    def _pack(self, value: Any) -> bytes:
        return ormsgpack.packb(self._rewrite(value), option=_OPTIONS | ormsgpack.OPT_NON_STR_KEYS)

    def _at(self, step: str, key: Any, value: Any) -> Any:
        self._path.append((step, key))
        rewritten = self._rewrite(value)
        self._path.pop()
        return rewritten

    def _rewrite(self, value: Any) -> Any:
        cls = type(value)
        if cls in _ATOMS:
            return value
        if isinstance(value, Enum):
            return self._describe(value)
        if isinstance(value, str):
            return _rewrite_str(value)
        if isinstance(value, int):
            return _rewrite_int(value)
        if isinstance(value, dict):
            return self._rewrite_dict(value)
        if isinstance(value, list) or cls is tuple:
            return [self._at("[{}]", index, part) for index, part in enumerate(value)]
        return self._describe(value)

    def _rewrite_dict(self, value: dict[Any, Any]) -> Any:
        if all(map(_is_plain_key, value)):
            return {key: self._at("[{}]", key, part) for key, part in value.items()}
        pairs = [(self._at(" key {}", key, key), self._at("[{}]", key, part)) for key, part in value.items()]
        return _extension(EXT_CONSTRUCTOR_SINGLE_ARG, ("builtins", "dict", pairs))

    def _describe(self, value: Any) -> Any:
        described = (_describers.get(type(value)) or _describer(value))(value)
        if isinstance(described, str):
            return _rewrite_str(described)
        code, payload = described
        if code == EXT_DELTA_SNAPSHOT:
            return ormsgpack.Ext(code, self._pack(payload))
        # an object's fields are named as its attributes; all else is named by where it is in it
        first, second, body, *rest = payload
        if code in _FIELDS and isinstance(body, dict):
            body = {self._rewrite(key): self._at(".{}", key, part) for key, part in body.items()}
        else:
            body = self._rewrite(body)
        return _extension(code, [first, second, body, *map(self._rewrite, rest)])


def _where(path: list[tuple[str, Any]]) -> str:
    return "".join(step.format(key if step == ".{}" else _short(key)) for step, key in path)


def _short(key: Any) -> str:
    try:
        text = ascii(key)
    except Exception:  # an integer of thousands of digits, or a repr that fails
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 80 else text[:79] + "…"


_FIELDS = frozenset({EXT_CONSTRUCTOR_KW_ARGS, EXT_PYDANTIC_V1, EXT_PYDANTIC_V2})


def _extension(code: int, payload: Any) -> Any:
    return ormsgpack.Ext(code, ormsgpack.packb(payload, option=_OPTIONS | ormsgpack.OPT_NON_STR_KEYS))


def _rewrite_str(value: str) -> Any:
    if _is_utf8(value):
        return value
    data = value.encode("utf-8", "surrogatepass")
    return _extension(EXT_CONSTRUCTOR_POS_ARGS, ("builtins", "str", (data, "utf-8", "surrogatepass")))


def _rewrite_int(value: int) -> Any:
    if _INT64_MIN <= value <= _UINT64_MAX:
        return value
    # hexadecimal: Python limits the length of decimal text, and reads it in quadratic time
    return _extension(EXT_CONSTRUCTOR_POS_ARGS, ("builtins", "int", (hex(value), 16)))


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain_key(key: Any) -> bool:
    """Whether msgpack keeps this dict key as it is (enums, dates and UUIDs it would turn into text)."""
    cls = type(key)
    if cls is tuple:
        return all(map(_is_plain_key, key))
    if isinstance(key, Enum):
        return False
    if isinstance(key, str):
        return _is_utf8(key)
    if isinstance(key, int):
        return _INT64_MIN <= key <= _UINT64_MAX
    return cls in _EXACT
