"""Views of objects: enums, models, dataclasses, arrays, and data whose class was not built."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from types import MemberDescriptorType
from typing import Any, Final

import ormsgpack
from pydantic import BaseModel

from haive_persistence.checkpointer.versions.diff.shapes import (
    ATOM,
    MAP,
    TYPE,
    Entries,
    View,
    Viewer,
    cached_names,
    digest,
    fields_of,
    opaque,
    type_name,
)
from haive_persistence.checkpointer.versions.diff.standard_views import tagged
from haive_persistence.codec.unbuilt import Unbuilt


def view_enum(cls: type) -> Viewer:
    name = type_name(cls)

    def look(value: Any) -> View:
        own = fields_of(value)
        return MAP, {TYPE: name, "name": own.get("_name_"), "value": own.get("_value_")}

    return look


def view_secret(cls: type) -> Viewer:
    """A secret by a digest under a key of this process: equal secrets are equal, and nothing is shown."""
    name = type_name(cls)

    def look(value: Any) -> View:
        secret = fields_of(value).get("_secret_value")
        data = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else bytes(secret or b"")
        return ATOM, {TYPE: name, "digest": digest(data, _SECRET_KEY)}

    return look


_SECRET_KEY: Final = os.urandom(32)


def view_named_code(cls: type) -> Viewer:
    """Classes and functions, by name."""
    kind = "type" if issubclass(cls, type) else "function"

    def look(value: Any) -> View:
        name = type_name(value) if kind == "type" else f"{value.__module__}.{value.__qualname__}"
        return ATOM, {TYPE: kind, "name": name}

    return look


# --- objects with fields --------------------------------------------------------------------------


def view_record(cls: type) -> Viewer:
    """The view of instances as a map of their type and fields."""
    name, slots, cached = type_name(cls), _slots(cls), cached_names(cls)

    def look(value: Any) -> View:
        own = fields_of(value)
        parts = {TYPE: name, **own}
        if len(parts) != len(own) + 1:  # a field of this very name
            parts = {TYPE: name, "$attributes": Entries(own)}
        for cached_name in cached:
            parts.pop(cached_name, None)
        for slot, descriptor in slots:
            with suppress(AttributeError):
                parts[slot] = descriptor.__get__(value)
        return MAP, parts

    return look


def _slots(cls: type) -> list[tuple[str, Any]]:
    return [
        (name, attribute)
        for base in reversed(cls.__mro__)
        if "__slots__" in vars(base)
        for name, attribute in vars(base).items()
        if isinstance(attribute, MemberDescriptorType) and not name.startswith("__")
    ]


def view_model(cls: type) -> Viewer:
    """The view of pydantic models: their fields, and what they hold beside them."""
    name, cached = type_name(cls), cached_names(cls)

    def look(value: Any) -> View:
        parts = {TYPE: name, **fields_of(value)}
        for cached_name in cached:
            parts.pop(cached_name, None)
        extra, private = _EXTRA(value), _PRIVATE(value)
        if extra:
            parts["$extra"] = Entries(extra)
        if private:
            parts["$private"] = Entries(private)
        return MAP, parts

    return look


def _hidden(name: str) -> Callable[[Any], dict[str, Any] | None]:
    get: Any = BaseModel.__dict__[name].__get__

    def read(value: Any) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] | None = get(value)
        except AttributeError:  # made without its constructor
            return None
        return found

    return read


_OWN: Final = object.__getattribute__
_GET_EXTRA: Final[Any] = BaseModel.__dict__["__pydantic_extra__"].__get__
_GET_PRIVATE: Final[Any] = BaseModel.__dict__["__pydantic_private__"].__get__
_EXTRA: Final = _hidden("__pydantic_extra__")
_PRIVATE: Final = _hidden("__pydantic_private__")


def model_fields(models: Sequence[Any]) -> list[Any]:
    """All that pydantic models hold, as it is."""
    fields = list(map(_OWN, models, repeat("__dict__")))  # no loop in Python: there may be thousands
    try:
        return [fields, list(map(_GET_EXTRA, models)), list(map(_GET_PRIVATE, models))]
    except AttributeError:  # one was made without its constructor
        return [fields, list(map(_EXTRA, models)), list(map(_PRIVATE, models))]


def view_named_tuple(cls: type) -> Viewer:
    names: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]  # it is what makes it one
    return tagged(cls, lambda value: dict(zip(names, tuple.__iter__(value))))  # noqa: B905


# --- values that were left unbuilt ----------------------------------------------------------------


def view_unbuilt(cls: type) -> Viewer:
    """Plain data under the class that it belongs to, as a built object looks, marked `$unbuilt`."""

    def look(value: Any) -> View:
        if isinstance(value, Unbuilt):
            stored: Any = value.stored
            plain = value.plain()
        else:
            stored = (_PRIVATE(value) or {}).get("_stored")
            plain = fields_of(value) | (_EXTRA(value) or {})
        head = {TYPE: type_name(cls), **_stored_name(stored), "$unbuilt": True}
        if type(plain) is dict and not any(type(key) is not str or key in head for key in plain):
            return MAP, {**head, **plain}
        return MAP, {**head, "value": plain}

    return look


def _stored_name(stored: Any) -> dict[str, Any]:
    """The class that stored data names, and a digest of what it says beside the fields."""
    try:
        code, data = stored
        parts = ormsgpack.unpackb(bytes(data), ext_hook=ormsgpack.Ext, option=ormsgpack.OPT_NON_STR_KEYS)
        module, name, _, *more = parts
    except (TypeError, ValueError):  # an array of numpy's, or nothing
        return {}
    head: dict[str, Any] = {TYPE: f"{module}.{name}"}
    if more[1:]:
        head["$more"] = digest(ormsgpack.packb([code, more], option=ormsgpack.OPT_NON_STR_KEYS))
    return head


# --- numpy ----------------------------------------------------------------------------------------


def of_numpy(name: str) -> Callable[[type], bool]:
    def test(cls: type) -> bool:
        numpy = sys.modules.get("numpy")
        return numpy is not None and issubclass(cls, getattr(numpy, name))

    return test


def view_number_of_numpy(cls: type) -> Viewer:
    name = type_name(cls)

    def look(value: Any) -> View:
        item = sys.modules["numpy"].generic.item(value)
        return opaque(value) if type(item) is cls else (MAP, {TYPE: name, "value": item})

    return look


def view_array(cls: type) -> Viewer:
    name = type_name(cls)

    def look(value: Any) -> View:
        kind = sys.modules["numpy"].ndarray
        dtype, shape = kind.dtype.__get__(value), kind.shape.__get__(value)
        head = {TYPE: name, "dtype": str(dtype.descr), "shape": list(shape)}
        if dtype.hasobject:
            return MAP, {**head, "$items": kind.tolist(value)}
        data = kind.tobytes(value)
        return ATOM, {**head, "size": len(data), "digest": digest(data)}

    return look


# --- which class is which -------------------------------------------------------------------------

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, not in C


def is_made_of_attributes(cls: type) -> bool:
    """True if all that instances hold is in their dictionary and slots."""
    if cls.__module__.partition(".")[0] in ("numpy", "pandas"):
        return False
    if not all(base is object or base.__flags__ & _HEAP_TYPE for base in cls.__mro__):
        return False
    return cls.__dictoffset__ != 0 or any("__slots__" in vars(base) for base in cls.__mro__)


def is_a(*classes: type) -> Callable[[type], bool]:
    return lambda cls: issubclass(cls, classes)
