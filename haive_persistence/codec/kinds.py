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

Builder = Callable[[int, Any, Mapping[str, str]], Any]

_FIELDS = frozenset({EXT_CONSTRUCTOR_KW_ARGS, EXT_PYDANTIC_V1, EXT_PYDANTIC_V2})
_ARGUMENTS = frozenset({EXT_CONSTRUCTOR_SINGLE_ARG, EXT_CONSTRUCTOR_POS_ARGS, EXT_CONSTRUCTOR_KW_ARGS})

_MAX_KNOWN = 4096
_known: dict[type, tuple[frozenset[int], Builder] | None] = {}


def lookup(module: str, qualname: str) -> type | None:
    """The class of that name in a loaded module.

    Attributes are read from `__dict__`: a module's or class's `__getattr__` may import. A class that
    another module defines (a re-export) counts if it can be found where it says it lives.
    """
    found = _walk(module, qualname)
    if not isinstance(found, type):
        return None
    home, own_name = found.__module__, found.__qualname__
    if (home, own_name) != (module, qualname) and _walk(home, own_name) is not found:
        return None
    return found


def _walk(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    # a generic pydantic model is kept in its module as "Box[int]", dots of its arguments included
    whole = getattr(found, "__dict__", {}).get(qualname)
    if whole is not None:
        return whole
    for step in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(step)
    return found


def builder(cls: type, code: int, *, trusted: bool) -> Builder | None:
    """What builds `cls` from a payload of this extension code, or None if it is not data.

    `trusted`: the class is on LangGraph's safe list or on the user's: then any class will do.
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


def _classify(cls: type) -> tuple[frozenset[int], Builder] | None:
    if issubclass(cls, _actors()):
        return None
    if issubclass(cls, Enum):
        return (frozenset({EXT_CONSTRUCTOR_SINGLE_ARG}), partial(_enum, cls)) if cls.__members__ else None
    if issubclass(cls, RootModel):
        return _FIELDS, partial(_root_model, cls)
    if issubclass(cls, BaseModel):
        return _FIELDS, partial(_model, cls)
    if issubclass(cls, _pydantic_v1()):
        return _FIELDS, partial(_model_v1, cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _FIELDS, partial(_construct, cls)
    if dataclasses.is_dataclass(cls):
        return _FIELDS, partial(_dataclass, cls)
    if callable(getattr(cls, "get_secret_value", None)):
        return frozenset({EXT_CONSTRUCTOR_SINGLE_ARG}), partial(_construct, cls)
    if issubclass(cls, (set, frozenset)):
        return _ARGUMENTS, partial(_set, cls)
    if issubclass(cls, _VALUES):
        return _ARGUMENTS, partial(_construct, cls)
    return None


def _actors() -> tuple[type, ...]:
    """Classes that are pydantic models or dataclasses, but do things rather than hold them."""
    return tuple(
        cls
        for module, name in _ACTORS
        if isinstance(cls := vars(sys.modules[module]).get(name) if module in sys.modules else None, type)
    )


_ACTORS = (
    ("langchain_core.runnables.base", "Runnable"),  # models, prompts, tools, retrievers, parsers
    ("langchain_core.embeddings.embeddings", "Embeddings"),
    ("langchain_core.vectorstores.base", "VectorStore"),
    ("langchain_core.callbacks.base", "BaseCallbackHandler"),
    ("pydantic_settings.main", "BaseSettings"),  # _env_file= would read any file
    ("pydantic.v1.env_settings", "BaseSettings"),
)


def _pydantic_v1() -> tuple[type, ...]:
    module = sys.modules.get("pydantic.v1.main")
    return (module.BaseModel,) if module is not None else ()


# --- builders ---------------------------------------------------------------------------------


def _construct(cls: Callable[..., Any], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    if code == EXT_CONSTRUCTOR_SINGLE_ARG:
        return cls(payload)
    if code == EXT_CONSTRUCTOR_POS_ARGS:
        return cls(*payload)
    return cls(**payload)


def _enum(cls: type[Enum], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    if "member" in extras:
        return cls[extras["member"]]
    return cls(payload)


def _set(cls: Callable[..., Any], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    if code != EXT_CONSTRUCTOR_SINGLE_ARG:
        return _construct(cls, code, payload, extras)
    return cls(map(_hashable, payload))


def _model(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    try:
        return cls(**payload)
    except Exception:
        return cls.model_construct(**payload)


def _root_model(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    return cls.model_validate(payload)


def _model_v1(cls: Any, code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    try:
        return cls(**payload)
    except Exception:
        return cls.construct(**payload)


def _dataclass(cls: Any, code: int, payload: dict[str, Any], extras: Mapping[str, str]) -> Any:
    late = {field.name for field in dataclasses.fields(cls) if not field.init} & payload.keys()
    if not late:
        return cls(**payload)
    made = cls(**{name: value for name, value in payload.items() if name not in late})
    for name in late:
        object.__setattr__(made, name, payload[name])
    return made


def _hashable(value: Any) -> Any:
    """msgpack turns tuples into lists; where only a hashable thing can stand, it was a tuple."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def datetime_from_iso(text: str) -> datetime:
    """The one method that stored data may call."""
    return datetime.fromisoformat(text)


def array(numpy: Any, kind: Any, shape: list[int], order: str, buffer: bytes) -> Any:
    """A numpy array of its own memory (so that it can be written to), never of objects."""
    dtype = numpy.dtype([tuple(field) for field in kind] if isinstance(kind, list) else kind)
    return numpy.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape, order=order)


def _send(code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    cls = vars(sys.modules["langgraph.types"])["Send"]
    if code != EXT_CONSTRUCTOR_POS_ARGS or len(payload) == 2:
        return _construct(cls, code, payload, extras)
    node, arg, timeout = payload
    return cls(node, arg, timeout=timeout)


def _dict(code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    return {_hashable(key): value for key, value in payload}


def _str(code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    data, encoding, errors = payload
    if (encoding, errors) != ("utf-8", "surrogatepass"):
        raise ValueError("not a string this package wrote")
    return bytes.decode(data, "utf-8", "surrogatepass")


def _int(code: int, payload: Any, extras: Mapping[str, str]) -> Any:
    digits, base = payload
    return int(digits, 16 if base == 16 else 10)


_VALUES: tuple[type, ...] = (
    deque,
    UUID,
    Decimal,
    pathlib.PurePath,
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

OWN: dict[tuple[str, str], Builder] = {
    **{(cls.__module__, cls.__name__): partial(_construct, cls) for cls in _VALUES},
    ("datetime", "datetime"): partial(_construct, datetime),
    ("datetime", "timezone"): partial(_construct, timezone),
    ("zoneinfo", "ZoneInfo"): partial(_construct, ZoneInfo),
    ("re", "compile"): partial(_construct, re.compile),
    ("builtins", "set"): partial(_set, set),
    ("builtins", "frozenset"): partial(_set, frozenset),
    ("builtins", "dict"): _dict,
    ("builtins", "str"): _str,
    ("builtins", "int"): _int,
    # Python 3.13 keeps pathlib's classes in a private module
    **{
        (module, name): partial(_construct, getattr(pathlib, name))
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
}
"""Builders of the standard library's types, whatever modules are loaded or patched."""
