"""The shapes that a diff sees values as, and what all classes have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, Final

from haive_persistence.codec import SafeSerializer
from haive_persistence.errors import EncodeError

TYPE: Final = "$type"

ATOM, TEXT, LIST, MAP, MEMBERS = range(5)
"""The kinds of a view. Parts: a JSON value; a `str`; a sequence; a dict with text keys; a set."""

View = tuple[int, Any]
Viewer = Callable[[Any], View]


class Entries(dict[str, Any]):
    """The entries of a map that is no plain JSON object, under keys that are text."""


class Members(list[Any]):
    """The elements of a set."""


def type_name(cls: type) -> str:
    """The name that `$type` has for a class."""
    module, name = type.__getattribute__(cls, "__module__"), type.__getattribute__(cls, "__qualname__")
    return str(name) if module == "builtins" else f"{module}.{name}"


def fields_of(value: Any) -> dict[str, Any]:
    """The instance's own dictionary; empty if it has none."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return own if type(own) is dict else {}


def opaque(value: Any) -> View:
    """A value by the digest of its stored form; by its type alone if it cannot be stored."""
    head: dict[str, Any] = {TYPE: type_name(type(value))}
    with suppress(EncodeError):
        _, data = SafeSerializer().dumps_typed(value)
        head |= {"size": len(data), "digest": digest(data)}
    return ATOM, head


def digest(data: bytes, key: bytes = b"") -> str:
    """The BLAKE2 digest, 128 bits, as hexadecimal text."""
    return hashlib.blake2b(data, digest_size=16, key=key).hexdigest()


def own_attributes(cls: type, own: dict[str, Any]) -> dict[str, Any]:
    """An instance's attributes but for those that are computed when they are asked for."""
    cached = cached_names(cls)
    return {name: own[name] for name in own if name not in cached} if cached else own


@lru_cache(maxsize=2048)
def cached_names(cls: type) -> frozenset[str]:
    return frozenset(
        name
        for base in cls.__mro__
        for name, attribute in vars(base).items()
        if isinstance(attribute, cached_property)
    )
