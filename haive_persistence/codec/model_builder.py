"""Builds pydantic models, from their fields or from what `model_dump` wrote."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel, RootModel

from haive_persistence.codec.core_schema import (
    CodeNeededError,
    core_schema,
    is_safe_factory,
    runs_code,
    undefined,
    validator_without_code,
)

# What a pydantic model is made of: its slots, without the checks of `setattr`.
SET_FIELDS = BaseModel.__dict__["__dict__"].__set__
SET_FIELDS_SET = BaseModel.__dict__["__pydantic_fields_set__"].__set__
SET_EXTRA = BaseModel.__dict__["__pydantic_extra__"].__set__
SET_PRIVATE = BaseModel.__dict__["__pydantic_private__"].__set__


class _Profile(NamedTuple):
    """Properties of a model class that decide the way it is built."""

    names: frozenset[str]
    by_name: bool  # fields have aliases, and the dump holds their names
    computed: frozenset[str]  # in the dump, but not fields
    open: bool  # other fields are allowed
    private: bool
    runs_code: bool  # when it is validated


@lru_cache(maxsize=1024)
def _profile(cls: type[BaseModel]) -> _Profile:
    dumps_aliases = bool(cls.model_config.get("serialize_by_alias"))
    return _Profile(
        names=frozenset(cls.model_fields),
        by_name=not dumps_aliases and not cls.__pydantic_custom_init__ and _has_alias(cls),
        computed=frozenset(cls.model_computed_fields) - cls.model_fields.keys(),
        open=cls.model_config.get("extra") == "allow",
        private=bool(cls.__private_attributes__) or cls.__pydantic_post_init__ is not None,
        runs_code=runs_code(cls) or cls.__pydantic_post_init__ is not None,
    )


def construct(cls: type[BaseModel], fields: dict[str, Any], private: dict[str, Any] | None = None) -> Any:
    """The model of exactly these fields; no code of its class is run.

    Fields that are not there get their default. Raises CodeNeededError if only a function of the
    class knows it.
    """
    if type(fields) is not dict:
        raise TypeError("not the fields of a model")
    profile = _profile(cls)
    extra: dict[str, Any] | None = {} if profile.open else None
    was_set: Any = set(fields)
    if was_set != profile.names:
        fields, extra = _sort_out(cls, profile, fields)
        was_set &= {*fields, *(extra or ())}
    made = object.__new__(cls)
    SET_FIELDS(made, fields)
    SET_FIELDS_SET(made, was_set)
    SET_EXTRA(made, extra)
    SET_PRIVATE(made, _private(cls, private or {}) if profile.private else None)
    return made


def _sort_out(
    cls: type[BaseModel], profile: _Profile, fields: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    own: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if name in fields:
            own[name] = fields[name]
        elif field.default_factory is not None:
            own[name] = _produce(field.default_factory, name)
        elif not undefined(field.default):
            own[name] = deepcopy(field.default)
    if not profile.open:
        return own, None
    return own, {name: fields[name] for name in fields if name not in profile.names}


def _produce(factory: Any, name: str) -> Any:
    if not is_safe_factory(factory):
        raise CodeNeededError(f"only its default factory knows {name!r}")
    return factory()


def _private(cls: type[BaseModel], stored: dict[str, Any]) -> dict[str, Any] | None:
    private: dict[str, Any] = {}
    for name, attribute in cls.__private_attributes__.items():
        if name in stored:
            private[name] = stored[name]
        elif attribute.default_factory is not None:
            private[name] = _produce(attribute.default_factory, name)
        elif not undefined(attribute.default):
            private[name] = deepcopy(attribute.default)
    return private


def build_model(cls: type[BaseModel], fields: Any, *, trusted: bool) -> Any:
    """The model of a dump: validated if that succeeds, else of its fields as they are.

    Validators and constructors run only if the class is `trusted`.
    """
    if issubclass(cls, RootModel):
        fields = {"root": fields}
    profile = _profile(cls)
    if profile.computed:
        fields = {name: value for name, value in fields.items() if name not in profile.computed}
    if profile.runs_code and not trusted:
        return _validate_without_code(cls, fields)
    if issubclass(cls, RootModel):
        return cls.model_validate(fields["root"])
    if profile.by_name:
        try:
            return cls.model_validate(fields, by_alias=False, by_name=True)
        except Exception:  # by its aliases then
            pass
    try:
        return cls(**fields)
    except Exception:  # no longer valid: taken as it is
        return cls.model_construct(**fields) if trusted else construct(cls, fields)


def _validate_without_code(cls: type[BaseModel], fields: dict[str, Any]) -> Any:
    if not cls.__pydantic_complete__:
        raise CodeNeededError("it is not fully defined yet: call its model_rebuild()")
    try:
        value = fields["root"] if issubclass(cls, RootModel) else fields
        return validator_without_code(cls, construct).validate_python(value)
    except CodeNeededError:
        raise
    except Exception:  # what a validator of the user's made of it is no longer what the schema says
        return construct(cls, fields)


def _has_alias(cls: type[BaseModel]) -> bool:
    """True if a field of this model, or of one inside it, is validated under another name."""
    return "validation_alias" in _keys(core_schema(cls))


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
