"""Which classes are data, and how each kind of them is built from what was stored.

A *builder* takes an extension code, a payload and extras, and returns the object. `builder(cls, …)`
gives the builder for a class, or None if the class is not data. Data types are enums, named tuples,
dataclasses, pydantic models (v1 and v2), classes that hold a secret value, and subclasses of the
standard value types (sets, deques, UUIDs, decimals, paths, dates, addresses). Building one may run
its own validators, `__init__` or `__post_init__`: code that its author wrote for exactly this.
Runnables, embeddings and settings are pydantic models too, but act or read the environment: not data.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)
from pydantic import BaseModel, RootModel

from haive_persistence.codec.model_builder import build_model, build_root_model

Builder = Callable[[int, Any, Mapping[str, str]], Any]
"""Called with the extension code, the payload and the extras."""

FROM_ISO = ("datetime", "datetime", "fromisoformat")
"""The one method that stored data may name."""

_FIELDS = frozenset({EXT_CONSTRUCTOR_KW_ARGS, EXT_PYDANTIC_V1, EXT_PYDANTIC_V2})
_SINGLE = frozenset({EXT_CONSTRUCTOR_SINGLE_ARG})
_ARGUMENTS = frozenset({EXT_CONSTRUCTOR_SINGLE_ARG, EXT_CONSTRUCTOR_POS_ARGS, EXT_CONSTRUCTOR_KW_ARGS})

_MAX_KNOWN = 4096
_Known = tuple[frozenset[int], Builder] | None
_known: dict[type, _Known] = {}


# --- finding a class --------------------------------------------------------------------------


def attribute(module: str, name: str) -> Any:
    """What a loaded module has under a name, or None.

    Read past `__getattr__` and `__getattribute__`: a lazy module's may import.
    """
    found = sys.modules.get(module)
    try:
        return object.__getattribute__(found, "__dict__").get(name)
    except AttributeError:
        return None


def lookup(module: str, name: str, qualname: str) -> type | None:
    """The class `name` of a loaded module, nested in others if `qualname` says so.

    A class that another module defines (a re-export) counts if it can be found where it says it lives.
    """
    found = attribute(module, name) if qualname == name else _nested(module, qualname)
    if not isinstance(found, type):
        return None
    if qualname != name:
        return found if found.__name__ == name else None
    home, own_name = found.__module__, found.__qualname__
    if (home, own_name) == (module, name) or _nested(home, own_name) is found:
        return found
    return None


def _nested(module: str, qualname: str) -> Any:
    first, *rest = qualname.split(".")
    found = attribute(module, first)
    for step in rest:
        found = vars(found).get(step) if isinstance(found, type) else None
    return found


# --- what kind it is --------------------------------------------------------------------------


def builder(cls: type, code: int, *, trusted: bool) -> Builder | None:
    """What builds `cls` from a payload of this extension code, or None if it is not data.

    `trusted`: the class is on LangGraph's safe list or on the user's; then any class will do.
    """
    try:
        known = _known[cls]
    except KeyError:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        known = _known[cls] = _classify(cls)
    if known is not None and code in known[0]:
        return known[1]
    return partial(_construct, cls) if trusted else None


def _classify(cls: type) -> _Known:
    if issubclass(cls, _actors()):
        return None
    for recognises, codes, make in _KINDS:
        if recognises(cls):
            return codes, make(cls)
    return None


def _actors() -> tuple[type, ...]:
    """Classes whose instances may be models or dataclasses, but do things rather than hold them."""
    found = (attribute(module, name) for module, name in _ACTORS)
    return tuple(cls for cls in found if isinstance(cls, type))


_ACTORS = (
    ("langchain_core.runnables.base", "Runnable"),  # models, prompts, tools, retrievers, parsers
    ("langchain_core.embeddings.embeddings", "Embeddings"),
    ("langchain_core.vectorstores.base", "VectorStore"),
    ("langchain_core.callbacks.base", "BaseCallbackHandler"),
    ("pydantic_settings.main", "BaseSettings"),  # its _env_file= would read any file
    ("pydantic.v1.env_settings", "BaseSettings"),
)


def _is_model_v1(cls: type) -> bool:
    base = attribute("pydantic.v1.main", "BaseModel")
    return isinstance(base, type) and issubclass(cls, base)


def _is_kind_of(*bases: type) -> Callable[[type], bool]:
    return lambda cls: issubclass(cls, bases)


# --- builders ---------------------------------------------------------------------------------


def _construct(cls: Callable[..., Any], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    if code == EXT_CONSTRUCTOR_SINGLE_ARG:
        return cls(payload)
    if code == EXT_CONSTRUCTOR_POS_ARGS:
        return cls(*payload)
    return cls(**payload)


def _send(cls: Any, code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    if code != EXT_CONSTRUCTOR_POS_ARGS or len(payload) != 3:
        return _construct(cls, code, payload, extras)
    node, arg, timeout = payload
    return cls(node, arg, timeout=timeout)


def _binds(build: Callable[..., Any]) -> Callable[[Any], Builder]:
    return lambda cls: partial(build, cls)


def _enum(cls: type[Enum], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    return cls[extras["member"]] if "member" in extras else cls(_hashable(payload))


def _set(cls: Callable[..., Any], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    if code != EXT_CONSTRUCTOR_SINGLE_ARG:
        return _construct(cls, code, payload, extras)
    try:
        return cls(payload)
    except TypeError:
        return cls(map(_hashable, payload))


def _hashable(value: Any) -> Any:
    """msgpack turns tuples into lists; where only a hashable thing can stand, it was a tuple."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _model(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    return build_model(cls, payload)


def _root_model(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    return build_root_model(cls, payload)


def _model_v1(cls: Any, code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    try:
        return cls(**payload)
    except Exception:
        return cls.construct(**payload)


def _dataclass(cls: Any) -> Builder:
    late = [field.name for field in dataclasses.fields(cls) if not field.init]
    return partial(_with_late_fields, cls, late) if late else partial(_construct, cls)


def _with_late_fields(
    cls: Any, late: list[str], code: int, payload: dict[str, Any], extras: Mapping[str, str]
) -> Any:
    """A dataclass with fields that its `__init__` does not take."""
    made = cls(**{name: value for name, value in payload.items() if name not in late})
    for name in late:
        if name in payload:
            object.__setattr__(made, name, payload[name])
    return made


# --- builders of standard types, whatever is loaded or patched --------------------------------


def _from_iso(code: int, payload: Any, extras: Mapping[str, str]) -> datetime:
    return datetime.fromisoformat(payload)


def _dict(code: int, payload: Any, extras: Mapping[str, str]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in payload}


def _str(code: int, payload: Any, extras: Mapping[str, str]) -> str:
    data, *how = payload
    if how != ["utf-8", "surrogatepass"]:
        raise ValueError("not a form that this package writes")
    return bytes.decode(data, "utf-8", "surrogatepass")


def _int(code: int, payload: Any, extras: Mapping[str, str]) -> int:
    digits, base = payload
    if base != 16:
        raise ValueError("not a form that this package writes")
    return int(digits, 16)


def _number_of_numpy(name: str, code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    cls = attribute("numpy", name)
    return payload if cls is None else cls(payload)


def array(numpy: Any, kind: Any, shape: list[int], order: str, buffer: bytes) -> Any:
    """A numpy array of its own memory (so that it can be written to), never of objects.

    Raises TypeError or ValueError if these are not the parts of one.
    """
    fields = [_field(*field) for field in kind] if isinstance(kind, list) else _field("", kind)[1]
    dtype = numpy.dtype(fields)
    return numpy.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape, order=order)


_DTYPE = re.compile(r"[<>|=][biufcmMSUV]\d*(\[\w+\])?")


def _field(name: str, kind: str, *shape: Any) -> tuple[Any, ...]:
    # numpy.dtype() understands much more than what dtype.str yields, some of it by importing
    if not _DTYPE.fullmatch(kind):
        raise ValueError(f"not a type of numbers: {kind!r}")
    return name, kind, *(_hashable(part) for part in shape)


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
    **{(cls.__module__, cls.__name__): partial(_construct, cls) for cls in _VALUES},
    ("datetime", "datetime"): partial(_construct, datetime),
    ("datetime", "datetime.fromisoformat"): _from_iso,
    ("datetime", "timezone"): partial(_construct, timezone),
    ("zoneinfo", "ZoneInfo"): partial(_construct, ZoneInfo),
    ("re", "compile"): partial(_construct, re.compile),
    ("builtins", "set"): partial(_set, set),
    ("builtins", "frozenset"): partial(_set, frozenset),
    # forms that only this package writes; LangGraph's permissive reader understands them too
    ("builtins", "dict"): _dict,
    ("builtins", "str"): _str,
    ("builtins", "int"): _int,
    **{
        ("numpy", name): partial(_number_of_numpy, name)
        for name in ("bool_", "float16", "float32", "float64", *_NUMBERS)
    },
    # Python 3.13 keeps pathlib's classes in a private module
    **{
        (module, name): partial(_construct, getattr(pathlib, name))
        for module in ("pathlib", "pathlib._local")
        for name in _PATHS
    },
}
"""Builders of the standard library's types, by the name they are stored under."""

_KINDS: tuple[tuple[Callable[[type], bool], frozenset[int], Callable[[Any], Builder]], ...] = (
    (lambda cls: issubclass(cls, Enum) and bool(cls.__members__), _SINGLE, _binds(_enum)),
    (_is_kind_of(RootModel), _FIELDS, _binds(_root_model)),
    (_is_kind_of(BaseModel), _FIELDS, _binds(_model)),
    (_is_model_v1, _FIELDS, _binds(_model_v1)),
    (lambda cls: issubclass(cls, tuple) and hasattr(cls, "_fields"), _FIELDS, _binds(_construct)),
    (dataclasses.is_dataclass, _FIELDS, _dataclass),
    (lambda cls: callable(getattr(cls, "get_secret_value", None)), _SINGLE, _binds(_construct)),
    (_is_kind_of(set, frozenset), _SINGLE, _binds(_set)),
    (_is_kind_of(*_VALUES, pathlib.PurePath), _ARGUMENTS, _binds(_construct)),
    (lambda cls: (cls.__module__, cls.__name__) == ("langgraph.types", "Send"), _ARGUMENTS, _binds(_send)),
)
"""A test of a class, the extension codes it may be built from, and what makes its builder."""
