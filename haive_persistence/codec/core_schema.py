"""Reads off a core schema what pydantic would run, and validates without its author's code."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from inspect import getclosurevars
from threading import Condition, Event, Lock, RLock
from types import FunctionType
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, SchemaValidator

_FACTORIES: tuple[Any, ...] = (
    *(list, dict, set, frozenset, tuple, str, int, float, bool, bytes, bytearray),
    *(deque, OrderedDict, Counter, defaultdict, Lock, RLock, Event, Condition),
)
_SAFE_FACTORIES = frozenset(map(id, _FACTORIES))
_STANDARD = (
    "pydantic._internal._validators",
    "pydantic._internal._std_types_schema",
    "pydantic._internal._generate_schema",
    "pydantic._internal._serializers",
)
_ACTING = frozenset(
    {"import_string", "pattern_either_validator", "pattern_str_validator", "pattern_bytes_validator"}
)


def is_safe_factory(factory: Any) -> bool:
    """True for default factories that read nothing and run none of the user's code."""
    return id(factory) in _SAFE_FACTORIES


class CodeNeededError(Exception):
    """An object can only be built by running code of its class; the text says which."""


# --- reading a schema -------------------------------------------------------------------------


def core_schema(cls: type[BaseModel]) -> Any:
    """The core schema of a class; of a class that is not complete yet, one that says it runs code.

    Completing it would evaluate its annotations.
    """
    return cls.__pydantic_core_schema__ if cls.__pydantic_complete__ else {"type": "call"}


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every node of a core schema."""
    todo = [schema]
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            if isinstance(part.get("type"), str):
                yield part
            todo.extend(value for key, value in part.items() if key != "metadata")
        elif isinstance(part, (list, tuple)):
            todo.extend(part)


def classes(cls: type[BaseModel]) -> Iterator[type]:
    """The classes that a model's fields are declared to hold, at any depth, its own included."""
    for node in nodes(core_schema(cls)):
        found = node.get("cls")
        if isinstance(found, type):
            yield found


def has_callable(cls: type[BaseModel]) -> bool:
    """True if a field of a model is declared to hold a function."""
    return any(node["type"] == "callable" for node in nodes(core_schema(cls)))


def has_serializer(cls: type[BaseModel]) -> bool:
    """True if a function of the class's author decides what is dumped."""
    for node in nodes(core_schema(cls)):
        how = node.get("serialization")
        if not isinstance(how, dict) or not str(how.get("type")).startswith("function"):
            continue
        if not (_is_standard(how) or _encodes(how)):
            return True
    return False


def _encodes(node: dict[str, Any]) -> bool:
    """True for the functions that dump `Base64Bytes`, URLs and the like; the field itself holds the value."""
    function = node.get("function")
    name = getattr(function, "__qualname__", "")
    home = getattr(function, "__module__", None)
    return (home == "pydantic.types" and name.startswith("Encoded")) or (
        home == "pydantic.networks" and name.startswith("_Base")
    )


def runs_code(cls: type[BaseModel]) -> bool:
    """True if validation runs code that is not pydantic's own."""
    return any(map(_acts, nodes(core_schema(cls))))


def _acts(node: dict[str, Any]) -> bool:
    kind = node["type"]
    if kind.startswith("function"):
        return not _is_standard(node)
    if kind == "default":
        return "default_factory" in node and not is_safe_factory(node["default_factory"])
    if kind in ("model", "dataclass"):
        return bool(node.get("custom_init") or node.get("post_init"))
    return kind == "call" or callable(node.get("discriminator"))


def _is_standard(node: dict[str, Any]) -> bool:
    """True for a function of pydantic's that converts between standard types, and does no more."""
    function = node.get("function")
    if isinstance(function, dict):
        function = function.get("function")
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", "")
    if getattr(function, "__module__", None) == "pydantic.types":
        return bool(name.startswith(("Secret", "_Secret", "_secret")))
    return getattr(function, "__module__", None) in _STANDARD and name not in _ACTING


# --- the same without code --------------------------------------------------------------------

Make = Callable[[Any, dict[str, Any]], Any]
"""Builds an object of a class from its fields."""


@lru_cache(maxsize=1024)
def validator_without_code(cls: type[BaseModel], make: Make) -> SchemaValidator:
    """Validates as `cls` does, but runs neither validators nor constructors; `make` builds the objects."""
    return SchemaValidator(_strip(core_schema(cls), make))


def _strip(schema: Any, make: Make) -> Any:
    if isinstance(schema, list):
        return [_strip(part, make) for part in schema]
    if isinstance(schema, tuple):
        return tuple(_strip(part, make) for part in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if not isinstance(kind, str):
        return {key: _strip(part, make) for key, part in schema.items()}
    if kind in ("model", "dataclass"):
        return _without_constructor(schema, make)
    if _acts(schema):
        return _without_function(schema, make)
    dropped = ("serialization", "metadata", "validation_alias", "computed_fields")
    return {key: _strip(part, make) for key, part in schema.items() if key not in dropped}


def _without_function(node: dict[str, Any], make: Make) -> Any:
    inner: Any = {"type": "any"}
    if node["type"] == "tagged-union":
        inner = {"type": "union", "choices": _strip(list(node["choices"].values()), make)}
    elif node["type"] not in ("function-plain", "call"):
        inner = _strip(node["schema"], make)
        if (url := _url_class(node)) is not None:
            inner = _wrapping(inner, partial(_parse_url, url))
    return {**inner, "ref": node["ref"]} if "ref" in node and "ref" not in inner else inner


def _url_class(node: dict[str, Any]) -> type | None:
    """The class of pydantic's, or a subclass, in which a function of pydantic's wraps a parsed URL."""
    function = node.get("function")
    function = function.get("function") if isinstance(function, dict) else function
    if not isinstance(function, FunctionType) or function.__module__ != "pydantic.networks":
        return None
    found = getclosurevars(function).nonlocals.get("source")
    return found if isinstance(found, type) else None


def _parse_url(cls: type, value: Any, parse: Any) -> Any:
    return value if type(value) is cls else wrap_url(cls, parse(value))


def wrap_url(cls: Any, parsed: Any) -> Any:
    """An object of a class of URLs, without running its code."""
    made = object.__new__(cls)
    object.__setattr__(made, "_url", parsed)
    return made


def _without_constructor(node: dict[str, Any], make: Make) -> Any:
    cls, is_root = node["cls"], bool(node.get("root_model"))

    def build(value: Any, handler: Any) -> Any:
        if isinstance(value, cls):
            return value
        if is_root:
            return make(cls, {"root": handler(value)})
        parts = handler(value)
        extra = parts[1] if node["type"] == "model" else None
        return make(cls, {**parts[0], **(extra or {})})

    inner = _strip(node["schema"], make)
    extra = (node.get("config") or {}).get("extra_fields_behavior")
    if extra and inner.get("type") == "model-fields":
        inner.setdefault("extra_behavior", extra)
    wrapped = _wrapping(inner, build)
    if "ref" in node:
        wrapped["ref"] = node["ref"]
    return wrapped


def _wrapping(schema: Any, build: Callable[[Any, Any], Any]) -> dict[str, Any]:
    return {
        "type": "function-wrap",
        "function": {"type": "no-info", "function": build},
        "schema": schema,
    }


def undefined(value: Any) -> bool:
    """True for pydantic's mark of a default that is not there."""
    return value is PydanticUndefined
