"""Which classes are data, and how each kind of them is built from what was stored.

A *builder* takes an extension code, a payload and extras, and returns the object. `builder(cls, …)`
gives the builder for a class, or None if the class is not data. Data types are enums, named tuples,
dataclasses, pydantic models (v1 and v2), exceptions, pydantic's secret values, and subclasses of
Python's own value and container types.

Building runs no code of the class: no `__init__`, `__new__`, `__post_init__`, validator or default
factory. Objects are made of their stored fields and attributes. Only a class that LangGraph's safe list
or the user's allow-list names is trusted to build itself. A class of this package is never built.
Not data is what acts (runnables, clients, settings), and a model with a field declared to hold such.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from enum import Enum, Flag, IntFlag
from functools import lru_cache, partial
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)
from pydantic import BaseModel, RootModel, SecretBytes, SecretStr

from haive_persistence.codec.core_schema import CodeNeededError, classes, has_callable, is_safe_factory
from haive_persistence.codec.model_builder import build_model, construct
from haive_persistence.codec.standard_types import (
    STANDARD,
    URLS,
    Builder,
    attribute,
    attributes,
    build_url,
    build_value,
    call,
    hashable,
    with_attributes,
)

EXT_FIELDS = -EXT_PYDANTIC_V2
"""Not stored: a pydantic model whose payload is its fields as they were, which needs no validation."""

_FIELDS = frozenset({EXT_CONSTRUCTOR_KW_ARGS, EXT_PYDANTIC_V1, EXT_PYDANTIC_V2, EXT_FIELDS})
_SINGLE = frozenset({EXT_CONSTRUCTOR_SINGLE_ARG})
_POSITIONAL = frozenset({EXT_CONSTRUCTOR_POS_ARGS})
_ARGUMENTS = frozenset({EXT_CONSTRUCTOR_SINGLE_ARG, EXT_CONSTRUCTOR_POS_ARGS, EXT_CONSTRUCTOR_KW_ARGS})
_PACKAGE = __name__.partition(".")[0]

_MAX_KNOWN = 4096
_known: dict[type, _Kind | None] = {}


# --- finding a class --------------------------------------------------------------------------


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


class _Kind(NamedTuple):
    codes: frozenset[int]
    build: Builder
    build_trusted: Builder


def builder(cls: type, code: int, *, trusted: bool) -> Builder | None:
    """The builder of `cls` for payloads of this extension code, or None if it is not data.

    `trusted`: LangGraph's safe list or the user's names the class; then any class will do.
    """
    if cls.__module__.partition(".")[0] == _PACKAGE:
        return None
    try:
        known = _known[cls]
    except KeyError:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        known = _known[cls] = _classify(cls)
    if known is not None and code in known.codes:
        return known.build_trusted if trusted else known.build
    return partial(call, cls) if trusted else None


def _classify(cls: type) -> _Kind | None:
    if cls in (BaseModel, RootModel) or _acts(cls):
        return None
    for recognises, codes, build, build_trusted in _KINDS:
        if recognises(cls):
            return _Kind(codes, partial(build, cls), partial(build_trusted or build, cls))
    return None


def _acts(cls: type) -> bool:
    """True for classes that do things rather than hold them, and for models with a field for such."""
    actors = _actors()
    if issubclass(cls, actors):
        return True
    if not issubclass(cls, BaseModel):
        return False
    return has_callable(cls) or any(_is_actor(part, actors) for part in classes(cls))


def _is_actor(cls: type, actors: tuple[type, ...]) -> bool:
    """True for an actor, and for what must be closed: a client, a connection, a file."""
    if issubclass(cls, pathlib.PurePath):  # paths have an __exit__, of no effect, before Python 3.13
        return False
    return issubclass(cls, actors) or any(hasattr(cls, name) for name in ("__exit__", "__aexit__", "aclose"))


def _actors() -> tuple[type, ...]:
    """Base classes of what may be a model or a dataclass, but acts."""
    found = (attribute(module, name) for module, name in _ACTORS)
    return tuple(cls for cls in found if isinstance(cls, type))


_ACTORS = (
    ("langchain_core.runnables.base", "Runnable"),  # models, prompts, tools, retrievers, parsers
    ("langchain_core.embeddings.embeddings", "Embeddings"),
    ("langchain_core.vectorstores.base", "VectorStore"),
    ("langchain_core.callbacks.base", "BaseCallbackHandler"),
    ("langchain_core.callbacks.base", "BaseCallbackManager"),
    ("langchain_core.stores", "BaseStore"),
    ("langchain_core.caches", "BaseCache"),
    ("langchain_core.document_loaders.base", "BaseLoader"),
    ("langsmith.client", "Client"),
    ("langsmith.async_client", "AsyncClient"),
    ("langsmith.run_trees", "RunTree"),
    ("langgraph.store.base", "BaseStore"),
    ("langgraph.checkpoint.base", "BaseCheckpointSaver"),
    ("pydantic_settings.main", "BaseSettings"),  # its _env_file= would read any file
    ("pydantic.v1.env_settings", "BaseSettings"),
)


def _model_base_v1() -> Any:
    return attribute("pydantic.v1.main", "BaseModel")


def _is_model_v1(cls: type) -> bool:
    base = _model_base_v1()
    return isinstance(base, type) and issubclass(cls, base)


def _is_kind_of(*bases: type) -> Callable[[type], bool]:
    return lambda cls: issubclass(cls, bases)


# --- builders ---------------------------------------------------------------------------------


def _send(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if code != EXT_CONSTRUCTOR_POS_ARGS or len(payload) != 3:
        return call(cls, code, payload, extras)
    node, arg, timeout = payload
    return cls(node, arg, timeout=timeout)


def _enum(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if "member" in extras:
        return cls._member_map_[extras["member"]]
    value = hashable(payload)
    try:
        return cls._value2member_map_[value]
    except (KeyError, TypeError):
        pass
    for member in cls._member_map_.values():
        if member._value_ == value:
            return member
    if issubclass(cls, Flag) and cls._missing_.__func__ in _FLAGS_MISSING:
        return cls(value)  # several flags at once: made by the standard library
    raise ValueError("the enum has no such value")


_FLAGS_MISSING = tuple(
    vars(base)["_missing_"].__func__ for base in (Flag, IntFlag) if "_missing_" in vars(base)
)


def _enum_trusted(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    return cls[extras["member"]] if "member" in extras else cls(hashable(payload))


def _model(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if code != EXT_FIELDS:
        return build_model(cls, payload, trusted=False)
    return construct(cls, payload, attributes(extras) if extras else None)


def _root_model(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if code != EXT_FIELDS:
        return build_model(cls, payload, trusted=False)
    return construct(cls, {"root": payload}, attributes(extras))


def _model_trusted(cls: type[BaseModel], code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if code == EXT_FIELDS and "left_out" not in extras:
        fields = {"root": payload} if issubclass(cls, RootModel) else payload
        if fields.keys() >= cls.model_fields.keys():
            return construct(cls, fields, extras.get("attributes"))
    return build_model(cls, payload, trusted=True)


def _model_v1(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if not _is_plain_v1(cls):
        raise CodeNeededError("it has validators or default factories")
    return cls(**payload)


def _is_plain_v1(cls: Any, depth: int = 16) -> bool:
    """True if a model of pydantic v1 is built without code of its author's."""
    if depth == 0 or cls.__pre_root_validators__ or cls.__post_root_validators__:
        return False
    if cls.__init__ is not _model_base_v1().__init__:
        return False
    return all(_is_plain_field_v1(field, depth) for field in cls.__fields__.values())


def _is_plain_field_v1(field: Any, depth: int) -> bool:
    if field.class_validators or (field.default_factory and not is_safe_factory(field.default_factory)):
        return False
    if field.sub_fields:
        return all(_is_plain_field_v1(part, depth - 1) for part in field.sub_fields)
    kind = field.type_
    if not isinstance(kind, type):
        return False
    if _is_model_v1(kind):
        return not issubclass(kind, _actors()) and _is_plain_v1(kind, depth - 1)
    return kind.__module__ in ("builtins", "datetime", "decimal", "uuid", "enum") or issubclass(kind, Enum)


def _model_v1_trusted(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    try:
        return cls(**payload)
    except Exception:  # its validators are its author's, and may raise anything: taken as it is
        return cls.construct(**payload)


def _named_tuple(cls: Any, code: int, payload: dict[str, Any], extras: Mapping[str, Any]) -> Any:
    defaults = cls._field_defaults
    made = tuple.__new__(cls, [payload[n] if n in payload else defaults[n] for n in cls._fields])
    return with_attributes(made, extras)


class _Plan(NamedTuple):
    """The fields of a dataclass, and the way to set them."""

    names: frozenset[str]
    fields: tuple[Any, ...]
    slots: bool


@lru_cache(maxsize=1024)
def _plan(cls: Any) -> _Plan:
    fields = dataclasses.fields(cls)
    slots = not any("__dict__" in vars(base) for base in cls.__mro__)
    slots = slots or any("__slots__" in vars(base) for base in cls.__mro__[:-1])
    return _Plan(frozenset(field.name for field in fields), fields, slots)


def _dataclass(cls: Any, code: int, payload: dict[str, Any], extras: Mapping[str, Any]) -> Any:
    plan = _plan(cls)
    if payload.keys() != plan.names:
        payload = _complete(plan, payload)
    made = object.__new__(cls)
    if plan.slots:
        for name, value in payload.items():
            object.__setattr__(made, name, value)
    else:
        vars(made).update(payload)
    return with_attributes(made, extras) if extras else made


def _complete(plan: _Plan, payload: dict[str, Any]) -> dict[str, Any]:
    """The fields with the defaults of those that are not there. Raises CodeNeededError if there is none."""
    if unknown := payload.keys() - plan.names:
        raise CodeNeededError(f"it has no field {min(unknown)!r}")
    values: dict[str, Any] = {}
    for field in plan.fields:
        if field.name in payload:
            values[field.name] = payload[field.name]
        elif field.default is not dataclasses.MISSING:
            values[field.name] = deepcopy(field.default)
        elif is_safe_factory(field.default_factory):
            values[field.name] = field.default_factory()
        else:
            raise CodeNeededError(f"its field {field.name!r} was not stored")
    return values


def _dataclass_trusted(cls: Any, code: int, payload: dict[str, Any], extras: Mapping[str, Any]) -> Any:
    """Calls the class; fields that its `__init__` does not take are set afterwards."""
    late = [field.name for field in dataclasses.fields(cls) if not field.init and field.name in payload]
    made = cls(**{name: value for name, value in payload.items() if name not in late})
    for name in late:
        object.__setattr__(made, name, payload[name])
    if attributes := extras.get("attributes"):
        vars(made).update(attributes)
    return made


def _secret(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    return cls(payload)


def _is_secret(cls: type) -> bool:
    """True for pydantic's secret values; another class's constructor is code."""
    return issubclass(cls, (SecretStr, SecretBytes)) and cls.__init__ in (
        SecretStr.__init__,
        SecretBytes.__init__,
    )


def _exception(cls: Any, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    if any("__new__" in vars(base) for base in cls.__mro__ if base.__module__ != "builtins"):
        raise CodeNeededError("it has a constructor of its own")
    made = cls.__new__(cls, *payload)
    made.args = tuple(payload)
    return with_attributes(made, extras)


_Build = Callable[..., Any]
_KINDS: tuple[tuple[Callable[[type], bool], frozenset[int], _Build, _Build | None], ...] = (
    (lambda cls: issubclass(cls, Enum) and bool(cls.__members__), _SINGLE, _enum, _enum_trusted),
    (_is_kind_of(RootModel), _FIELDS, _root_model, _model_trusted),
    (_is_kind_of(BaseModel), _FIELDS, _model, _model_trusted),
    (_is_model_v1, _FIELDS, _model_v1, _model_v1_trusted),
    (lambda cls: issubclass(cls, tuple) and hasattr(cls, "_fields"), _FIELDS, _named_tuple, call),
    (dataclasses.is_dataclass, _FIELDS, _dataclass, _dataclass_trusted),
    (_is_secret, _SINGLE, _secret, None),
    (_is_kind_of(*URLS), _SINGLE, build_url, None),
    (_is_kind_of(BaseException), _POSITIONAL, _exception, None),
    (lambda cls: (cls.__module__, cls.__name__) == ("langgraph.types", "Send"), _ARGUMENTS, _send, None),
    (_is_kind_of(*STANDARD), _ARGUMENTS, build_value, None),
)
"""A test of a class, the extension codes it is built from, its builder, and that of a trusted class."""
