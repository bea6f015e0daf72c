"""Values as the few shapes that a diff knows: atoms, texts, lists, maps and members of a set.

A plain JSON value is its own shape. Any other is a map whose `$type` names its class: a tuple is
`{"$type": "tuple", "$items": [...]}`, a model `{"$type": "package.Model", "field": ...}`. Bytes and what
only a library in C can take apart are `{"$type": ..., "size": ..., "digest": ...}`.

No code of a value's class runs: fields are read from the instance's own dictionary and slots, contents
through the methods of Python's own base classes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any, Final

from pydantic import BaseModel, SecretBytes, SecretStr

from haive_persistence.checkpointer.versions.diff.object_views import (
    is_a,
    is_made_of_attributes,
    of_numpy,
    view_array,
    view_enum,
    view_model,
    view_named_code,
    view_named_tuple,
    view_number_of_numpy,
    view_record,
    view_secret,
    view_unbuilt,
)
from haive_persistence.checkpointer.versions.diff.shapes import Entries, Members, View, Viewer, opaque
from haive_persistence.checkpointer.versions.diff.standard_views import (
    TAKES,
    view_atom,
    view_bytes,
    view_dict,
    view_entries,
    view_float,
    view_int,
    view_list,
    view_members,
    view_standard,
    view_text,
    view_url,
)
from haive_persistence.checkpointer.versions.diff.tokens import TokenList
from haive_persistence.codec.standard_types import URLS
from haive_persistence.codec.unbuilt import _MESSAGE_CLASSES, Unbuilt


def view(value: Any) -> View:
    """The shape of a value, and its parts."""
    return viewer(type(value))(value)  # type: ignore[arg-type]  # classes are hashable, whatever the stub says


@lru_cache(maxsize=2048)
def viewer(cls: type) -> Viewer:
    """The function that looks at instances of a class."""
    exact = _EXACT.get(cls)
    if exact is not None:
        return exact
    for test, make in _KINDS:
        if test(cls):
            return make(cls)
    return opaque


_EXACT: Final[dict[type, Viewer]] = {
    type(None): view_atom,
    bool: view_atom,
    int: view_int,
    float: view_float,
    str: view_text,
    **dict.fromkeys((bytes, bytearray, memoryview), view_bytes),
    list: view_list,
    dict: view_dict,
    Entries: view_entries,
    Members: view_members,
}
_KINDS: Final[tuple[tuple[Callable[[type], bool], Callable[[type], Viewer]], ...]] = (
    (is_a(TokenList), lambda cls: view_list),
    (lambda cls: issubclass(cls, Unbuilt) or cls in _MESSAGE_CLASSES, view_unbuilt),
    (is_a(Enum), view_enum),
    (is_a(BaseModel), view_model),
    (is_a(type, FunctionType, BuiltinFunctionType, MethodType), view_named_code),
    (of_numpy("generic"), view_number_of_numpy),
    (of_numpy("ndarray"), view_array),
    (is_a(SecretStr, SecretBytes), view_secret),
    (is_a(*URLS), view_url),
    (lambda cls: issubclass(cls, tuple) and hasattr(cls, "_fields"), view_named_tuple),
    (is_a(*TAKES), view_standard),
    (is_a(SimpleNamespace), view_record),
    (is_made_of_attributes, view_record),
)
"""A test of a class, and the maker of its viewer; the first that fits."""
