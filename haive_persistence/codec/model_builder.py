"""Builds pydantic models from what `model_dump` wrote."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel

# What a pydantic model is made of: its slots, without the checks of `setattr`.
SET_FIELDS = BaseModel.__dict__["__dict__"].__set__
SET_FIELDS_SET = BaseModel.__dict__["__pydantic_fields_set__"].__set__
SET_EXTRA = BaseModel.__dict__["__pydantic_extra__"].__set__
SET_PRIVATE = BaseModel.__dict__["__pydantic_private__"].__set__


class _Profile(NamedTuple):
    """What must be known about a model class before its dump can be read back."""

    by_name: bool  # fields have aliases, and the dump holds their names
    computed: frozenset[str]  # in the dump, but not fields


def build_model(cls: type[BaseModel], fields: dict[str, Any]) -> BaseModel:
    """The model of these fields: validated if they are valid, else taken as they are."""
    profile = _profile(cls)
    if profile.computed:
        fields = {name: value for name, value in fields.items() if name not in profile.computed}
    if profile.by_name:
        try:
            return cls.model_validate(fields, by_alias=False, by_name=True)
        except Exception:
            pass
    try:
        return cls(**fields)
    except Exception:
        return cls.model_construct(**fields)


def build_root_model(cls: type[BaseModel], root: Any) -> BaseModel:
    """A RootModel from its root value; LangGraph's reader leaves the bare root."""
    return cls.model_validate(root)


@lru_cache(maxsize=1024)
def _profile(cls: type[BaseModel]) -> _Profile:
    dumps_aliases = bool(cls.model_config.get("serialize_by_alias"))
    by_name = not dumps_aliases and not cls.__pydantic_custom_init__ and _has_alias(cls)
    return _Profile(by_name, frozenset(cls.model_computed_fields) - cls.model_fields.keys())


def _has_alias(cls: type[BaseModel]) -> bool:
    """Whether a field of this model, or of one inside it, is validated under another name."""
    return "validation_alias" in _keys(cls.__pydantic_core_schema__)


def _keys(schema: Any) -> set[str]:
    found: set[str] = set()
    todo = [schema]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            found.update(key for key, value in part.items() if isinstance(key, str) and value is not None)
            todo.extend(part.values())
        elif isinstance(part, (list, tuple)):
            todo.extend(part)
    return found
