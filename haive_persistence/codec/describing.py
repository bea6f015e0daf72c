"""The stored form of objects: an extension's code, and its payload.

An object becomes an extension `Ext(code, (module, name, payload, …))`. The codes and payloads are
LangGraph's. Where LangGraph would lose something, a form is used that its permissive reader also
restores exactly (for instance `builtins.int("0x…", 16)`); what it knows no form for is added as a
trailing map, which it ignores. Tuples stand as lists in payloads: a tuple is an object itself.
"""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import inspect
import ipaddress
import pathlib
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from functools import cached_property
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
from pydantic import BaseModel, RootModel

from haive_persistence.codec import frames, unbuilt
from haive_persistence.codec.core_schema import classes, has_serializer, is_safe_factory, undefined
from haive_persistence.codec.data_types import lookup
from haive_persistence.codec.fast_messages import ORDINARY
from haive_persistence.codec.standard_types import CORE_URLS, FACTORIES, URLS
from haive_persistence.errors import EncodeError

FIELDS = "model_construct"
"""Marks a model whose payload is its fields as they are; LangGraph's own form is its dump."""

Described = tuple[int, Any] | str | ormsgpack.Ext
"""An extension code and its payload, or the whole extension; or text that stands for the object."""

Describer = Callable[[Any], Described]
Encode = Callable[[Any], bytes]
Make = Callable[[Any, Encode], Describer]
"""Makes the describer of a class."""

EXACT = frozenset({str, int, float, bool, bytes, type(None)})


def find_describer(obj: Any, encode: Encode) -> Describer:
    """The describer of this class; `encode` serialises a part. Raises TypeError if there is none."""
    cls = obj.__class__
    for recognises, make in _KINDS:
        if recognises(obj):
            return make(cls, encode)
    text = f"{cls.__module__}.{cls.__qualname__} is not a type that can be stored"
    raise TypeError(f"{text}: {_advice(obj)}")


# --- what an object is, in the order LangGraph asks -------------------------------------------


def _has(method: str) -> Callable[[Any], bool]:
    return lambda obj: callable(getattr(obj, method, None)) and not isinstance(obj, type)


def _is(*classes: type) -> Callable[[Any], bool]:
    return lambda obj: isinstance(obj, classes)


def _is_array(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _is_scalar_of_numpy(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.generic)


def _is_number_of_numpy(obj: Any) -> bool:
    if not _is_scalar_of_numpy(obj):
        return False
    return obj.dtype.kind in "bSU" or (obj.dtype.kind in "iuf" and obj.dtype.itemsize <= 8)


# --- how it is written ------------------------------------------------------------------------


def _extras(cls: type) -> dict[str, Any]:
    """The path to a class nested in another; LangGraph itself only looks at module level."""
    if cls.__qualname__ == cls.__name__ or "<locals>" in cls.__qualname__:
        return {}
    return {"qualname": cls.__qualname__}


def _more(encode: Encode, extras: dict[str, Any], attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trailing map of an object: where its class is, and what it holds beside its fields."""
    stored: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in attributes.items():
        if _is_storable(encode, value):
            stored[name] = value
        else:
            left_out.append(name)
    if stored:
        extras = {**extras, "attributes": stored}
    if left_out:
        extras = {**extras, "left_out": left_out}
    return [extras] if extras else []


def _is_storable(encode: Encode, value: Any) -> bool:
    try:
        encode(value)
    except EncodeError:
        return False
    return True


def _attributes(obj: Any, fields: Iterable[str] = ()) -> dict[str, Any]:
    """The part of an object's `__dict__` that is neither a field nor computed when it is asked for."""
    found: dict[str, Any] = getattr(obj, "__dict__", {})
    names = found.keys() - set(fields)
    return {
        name: found[name]
        for name in sorted(names, key=str)
        if not isinstance(inspect.getattr_static(type(obj), name, None), cached_property)
    }


def _writes(code: int, payload: Callable[[Any], Any]) -> Make:
    """A maker of describers for classes whose payload is a function of the object alone."""

    def make(cls: type, encode: Encode) -> Describer:
        module, name, extras = cls.__module__, cls.__name__, _extras(cls)
        more = [extras] if extras else []
        if module in sys.stdlib_module_names or cls.__dictoffset__ == 0:  # no attributes of its own
            return lambda obj: (code, [module, name, payload(obj), *more])
        return lambda obj: (code, [module, name, payload(obj), *_more(encode, extras, _attributes(obj))])

    return make


# --- pydantic models ---


def _model(cls: Any, encode: Encode) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)
    more = [extras] if extras else []

    def dump(obj: Any) -> Described:
        return EXT_PYDANTIC_V2, [module, name, obj.model_dump(), "model_validate_json", *more]

    if not issubclass(cls, BaseModel):
        return dump
    names = [field for field, info in cls.model_fields.items() if not info.exclude]
    known, is_root, has_private = set(names), issubclass(cls, RootModel), bool(cls.__private_attributes__)
    dumps = _dumps(cls)

    def describe(obj: Any) -> Described:
        fields: dict[str, Any] = obj.__dict__
        if dumps and not _holds_unbuilt(fields):
            return dump(obj)
        if fields.keys() != known:
            fields = {name: fields[name] for name in names if name in fields}
        if obj.__pydantic_extra__:
            fields = {**fields, **obj.__pydantic_extra__}
        trailer = _more(encode, extras, _private(encode, cls, obj)) if has_private else more
        return EXT_PYDANTIC_V2, [module, name, fields["root"] if is_root else fields, FIELDS, *trailer]

    return describe if cls not in ORDINARY else _message(cls, describe)


def _message(cls: Any, otherwise: Describer) -> Describer:
    """LangGraph's form for an ordinary message, which validation reads exactly."""
    module, name, is_ordinary = cls.__module__, cls.__name__, ORDINARY[cls]

    def describe(obj: Any) -> Described:
        fields = obj.__dict__
        if obj.__pydantic_extra__ or not is_ordinary(fields):
            return otherwise(obj)
        return EXT_PYDANTIC_V2, [module, name, fields, "model_validate_json"]

    return describe


def _dumps(cls: type[BaseModel]) -> bool:
    """True if a model is stored as its author dumps it, or holds classes that cannot be found by name."""
    decorators = cls.__pydantic_decorators__
    if decorators.field_serializers or decorators.model_serializers:
        return True
    if cls.model_dump is not BaseModel.model_dump or has_serializer(cls):
        return True
    return not all(
        _is_found(part) for part in classes(cls) if issubclass(part, BaseModel) and part is not cls
    )


def _is_found(cls: type) -> bool:
    return lookup(cls.__module__, cls.__name__, _extras(cls).get("qualname", cls.__name__)) is cls


def _holds_unbuilt(value: Any) -> bool:
    if unbuilt.is_unbuilt(value):
        return True
    if isinstance(value, BaseModel):
        return _holds_unbuilt(value.__dict__) or _holds_unbuilt(value.__pydantic_extra__)
    if isinstance(value, dict):
        return any(map(_holds_unbuilt, value.values())) or any(map(_holds_unbuilt, value))
    return isinstance(value, (list, tuple, set, frozenset, deque)) and any(map(_holds_unbuilt, value))


def _private(encode: Encode, cls: type[BaseModel], obj: BaseModel) -> dict[str, Any]:
    """The private attributes of a model, but for those that have their default."""
    found = obj.__pydantic_private__ or {}
    return {name: value for name, value in found.items() if not _is_default(encode, cls, name, value)}


def _is_default(encode: Encode, cls: type[BaseModel], name: str, value: Any) -> bool:
    attribute = cls.__private_attributes__.get(name)
    if attribute is None:
        return False
    factory = attribute.default_factory
    if factory is None:
        default = attribute.default
        return not undefined(default) and type(value) is type(default) and bool(value == default)
    if not is_safe_factory(factory):
        return False
    default = factory()  # type: ignore[call-arg]  # of a safe factory: it takes no arguments
    return type(value) is type(default) and (bool(value == default) or not _is_storable(encode, value))


# --- dataclasses ---


def _dataclass(cls: type, encode: Encode) -> Describer:
    # not dataclasses.asdict: it deep-copies, and flattens nested types
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    known, more = set(names), [extras] if extras else []

    def describe(obj: Any) -> Described:
        own = getattr(obj, "__dict__", None)
        if own is not None and own.keys() == known:
            return EXT_CONSTRUCTOR_KW_ARGS, [module, name, own, *more]
        trailer = _more(encode, extras, _attributes(obj, names)) if own else more
        return EXT_CONSTRUCTOR_KW_ARGS, [
            module,
            name,
            {field: getattr(obj, field) for field in names},
            *trailer,
        ]

    return describe


# --- subclasses of Python's own types, and its containers ---


def _items(obj: Any) -> list[Any]:
    iterate: Any = list.__iter__ if isinstance(obj, list) else tuple.__iter__
    return list(iterate(obj))


_TAKE: dict[type, Callable[[Any], Any]] = {
    OrderedDict: dict,
    dict: dict.copy,
    list: _items,
    tuple: _items,
    str: str.__str__,
    bytes: lambda obj: bytes.__getitem__(obj, slice(None)),
    int: int.__int__,
    float: float.__float__,
}
"""Per base class: the plain value of an instance of a subclass, without running a method of that."""


def _is_subclass(obj: Any) -> bool:
    """True for an instance of a subclass of a type that msgpack knows."""
    cls = type(obj)
    if not issubclass(cls, tuple(_TAKE)) or issubclass(cls, Enum) or _is_number_of_numpy(obj):
        return False
    return not (hasattr(cls, "_asdict") and issubclass(cls, tuple))


def _subclass(cls: type, encode: Encode) -> Describer:
    base = next(base for base in cls.__mro__ if base in _TAKE)
    return _writes(EXT_CONSTRUCTOR_SINGLE_ARG, _TAKE[base])(cls, encode)


def describe_tuple(obj: tuple[Any, ...]) -> Described:
    return EXT_CONSTRUCTOR_SINGLE_ARG, ["builtins", "tuple", [*obj]]


def _default_dict(cls: type, encode: Encode) -> Describer:
    def describe(obj: defaultdict[Any, Any]) -> Described:
        factory = obj.default_factory
        if factory is None:
            return EXT_CONSTRUCTOR_POS_ARGS, ["collections", "defaultdict", [None, dict(obj)]]
        name = getattr(factory, "__name__", "")
        if FACTORIES.get(name) is not factory:
            raise TypeError(
                f"a defaultdict that is filled by {name or factory!r} cannot be stored: use one of Python's "
                f"types ({', '.join(FACTORIES)}), or store dict(value)"
            )
        return EXT_CONSTRUCTOR_POS_ARGS, ["collections", "defaultdict", [None, dict(obj)], {"factory": name}]

    return describe


def _exception(cls: type, encode: Encode) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)

    def describe(obj: BaseException) -> Described:
        more = _more(encode, extras, _attributes(obj))
        if left_out := more and more[0].get("left_out"):
            raise TypeError(
                f"a {name} whose attribute {left_out[0]!r} cannot be stored: store repr(error), or a dict of "
                "what you need of it"
            )
        return EXT_CONSTRUCTOR_POS_ARGS, [module, name, [*obj.args], *more]

    return describe


# --- others ---


def _enum(cls: type, encode: Encode) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)
    more = [extras] if extras else []

    def describe(obj: Enum) -> Described:
        value = obj.value
        if type(value) in EXACT:
            return EXT_CONSTRUCTOR_SINGLE_ARG, [module, name, value, *more]
        # a tuple, say, LangGraph reads as a list, which is no value of the enum: add the name
        return EXT_CONSTRUCTOR_SINGLE_ARG, [module, name, value, {"member": obj.name, **extras}]

    return describe


def _datetime(cls: type, encode: Encode) -> Describer:
    module, name = cls.__module__, cls.__name__

    def describe(obj: datetime) -> Described:
        zone = obj.tzinfo
        if cls is datetime and not obj.fold and _iso_keeps(zone):
            return EXT_METHOD_SINGLE_ARG, [module, name, obj.isoformat(), "fromisoformat"]
        parts = {part: getattr(obj, part) for part in _DATETIME_PARTS}
        more = [] if cls is datetime else _more(encode, _extras(cls), _attributes(obj))
        return EXT_CONSTRUCTOR_KW_ARGS, [module, name, parts, *more]

    return describe


_DATETIME_PARTS = ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo", "fold")


def _iso_keeps(zone: Any) -> bool:
    """True if ISO 8601 text keeps this time zone (foreign tzinfo classes keep only their offset)."""
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


def _url(cls: type, encode: Encode) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)

    def describe(obj: Any) -> Described:
        text = str(obj if cls in CORE_URLS else obj._url)
        return _SINGLE, [module, name, text, *_more(encode, extras, _attributes(obj, ["_url"]))]

    return describe


def _zone(cls: type, encode: Encode) -> Describer:
    def describe(obj: ZoneInfo) -> Described:
        if not _has_key(obj):
            raise TypeError("a ZoneInfo made from a file has no key by which it could be restored")
        return EXT_CONSTRUCTOR_SINGLE_ARG, [cls.__module__, cls.__name__, obj.key]

    return describe


def _deque(cls: type, encode: Encode) -> Describer:
    module, name, extras = cls.__module__, cls.__name__, _extras(cls)

    def describe(obj: deque[Any]) -> Described:
        more = _more(encode, extras, _attributes(obj)) if cls is not deque else []
        if obj.maxlen is None:
            return EXT_CONSTRUCTOR_SINGLE_ARG, [module, name, [*obj], *more]
        return EXT_CONSTRUCTOR_POS_ARGS, [module, name, [[*obj], obj.maxlen], *more]

    return describe


def _send_args(obj: Any) -> list[Any]:
    timeout = getattr(obj, "timeout", None)
    return [obj.node, obj.arg] if timeout is None else [obj.node, obj.arg, timeout]


def _array(cls: type, encode: Encode) -> Describer:
    def describe(obj: Any) -> Described:
        if obj.dtype.hasobject:
            raise TypeError("a numpy array of Python objects cannot be stored; store obj.tolist()")
        if "numpy.ma" in sys.modules and isinstance(obj, sys.modules["numpy.ma"].MaskedArray):
            raise TypeError("a masked array would lose its mask; store its data and mask apart")
        order = "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
        kind = _listed(obj.dtype.descr) if obj.dtype.names else obj.dtype.str
        if type(obj).__name__ != "ndarray":
            raise TypeError("a subclass of numpy's ndarray would lose its class; store numpy.asarray(value)")
        return EXT_NUMPY_ARRAY, [kind, [*obj.shape], order, obj.tobytes(order="A")]

    return describe


def _listed(value: Any) -> Any:
    """The same with lists for tuples, which are arrays in LangGraph's form."""
    return [_listed(part) for part in value] if isinstance(value, (list, tuple)) else value


def _number_of_numpy(cls: type, encode: Encode) -> Describer:
    name = "bool_" if cls.__name__ == "bool" else cls.__name__
    return lambda obj: (EXT_CONSTRUCTOR_SINGLE_ARG, ["numpy", name, obj.item()])


_ADVICE: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda obj: isinstance(obj, complex), "store [value.real, value.imag]"),
    (lambda obj: isinstance(obj, fractions.Fraction), "store str(value)"),
    (_is_scalar_of_numpy, "store numpy.array(value)"),
    (lambda obj: type(obj).__module__ == "pydantic.networks", "store str(value)"),
    (lambda obj: isinstance(obj, Mapping), "store dict(value)"),
    (inspect.isawaitable, "await it in the node, and store what it returns"),
    (
        lambda obj: isinstance(obj, type) or inspect.isroutine(obj),
        "store its name, and look it up in the node",
    ),
    (
        lambda obj: (
            any(hasattr(obj, name) for name in ("__exit__", "__aexit__", "aclose"))
            or type(obj).__module__.partition(".")[0] in ("asyncio", "threading", "queue", "_queue")
        ),
        "open it in the node, or pass it in the runtime context",
    ),
    (lambda obj: isinstance(obj, Iterable), "store list(value)"),
)


def _advice(obj: Any) -> str:
    """Advice on what to store instead."""
    fitting = (advice for fits, advice in _ADVICE if fits(obj))
    return next(fitting, "make it a dataclass or a pydantic model, or store a dict of its parts")


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
_KINDS: tuple[tuple[Callable[[Any], bool], Make], ...] = (
    (unbuilt.is_unbuilt, lambda cls, encode: lambda obj: unbuilt.extension(obj, encode)),
    (frames.is_of_pandas, lambda cls, encode: frames.describe),
    (_is(_DeltaSnapshot), lambda cls, encode: lambda obj: (EXT_DELTA_SNAPSHOT, obj.value)),
    (_is(defaultdict), _default_dict),
    (_is_subclass, _subclass),
    (_has("model_dump"), _model),
    (_has("get_secret_value"), _writes(_SINGLE, lambda obj: obj.get_secret_value())),
    (_has("dict"), _writes(EXT_PYDANTIC_V1, lambda obj: obj.dict())),
    (_has("_asdict"), _writes(_KEYWORDS, lambda obj: dict(zip(obj._fields, obj, strict=False)))),
    (_is(pathlib.PurePath), _writes(_POSITIONAL, lambda obj: [*obj.parts])),
    (
        _is(re.Pattern),
        lambda cls, encode: lambda obj: (_POSITIONAL, ["re", "compile", [obj.pattern, obj.flags]]),
    ),
    (_is(*URLS), _url),
    (_is(UUID), _writes(_SINGLE, lambda obj: obj.hex)),
    (_is(decimal.Decimal), _writes(_SINGLE, str)),
    (_is(set, frozenset), _writes(_SINGLE, lambda obj: [*obj])),
    (_is(deque), _deque),
    (_is(*_IP_CLASSES), _writes(_SINGLE, str)),
    (_is(datetime), _datetime),
    (_is(timedelta), _writes(_POSITIONAL, lambda obj: [obj.days, obj.seconds, obj.microseconds])),
    (_is(date), _writes(_POSITIONAL, lambda obj: [obj.year, obj.month, obj.day])),
    (_is(time), _writes(_KEYWORDS, lambda obj: {part: getattr(obj, part) for part in _TIME_PARTS})),
    (_is(timezone), _writes(_POSITIONAL, lambda obj: [*_timezone_args(obj)])),
    (_is(ZoneInfo), _zone),
    (_is(Enum), _enum),
    (_is(SendProtocol), _writes(_POSITIONAL, _send_args)),
    (lambda obj: dataclasses.is_dataclass(obj) and not isinstance(obj, type), _dataclass),
    (_is(Item), _writes(_KEYWORDS, lambda obj: {slot: getattr(obj, slot) for slot in obj.__slots__})),
    (_is_array, _array),
    (_is_number_of_numpy, _number_of_numpy),
    (_is(BaseException), _exception),
)
