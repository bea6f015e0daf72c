"""Namespaces and keys as text, and what is accepted as one.

A namespace is written as its labels, each followed by a dot: ('users', 'ann') is 'users.ann.'.
Labels cannot hold a dot (LangGraph's rule), so no two namespaces share a text, and everything at or
below a namespace is exactly one range of texts in byte order, [ 'users.ann.', 'users.ann/' ): the
dot that ends every label is what keeps 'users.anna.' out, with no pattern and nothing to escape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchOp,
    validate_op_namespace,
)

from haive_persistence.errors import InvalidIdentifierError, InvalidInputError

Namespace = tuple[str, ...]

#: Bytes a namespace and a key may take together. With the tenant (1020) and the name of a field (200)
#: they are one index entry, which has 2700.
MAX_ID_BYTES = 1400
#: Greater than every namespace of that size: U+10FFFF is the last of all code points.
_BEYOND = "\U0010ffff" * (MAX_ID_BYTES // 4 + 1)


class NamespaceError(InvalidIdentifierError, InvalidNamespaceError):
    """A namespace this store does not accept; also LangGraph's InvalidNamespaceError."""


class Scope(NamedTuple):
    """All namespaces at or below one: texts from `low` up to, not including, `high`."""

    low: str
    high: str


def check_op(op: Op) -> None:
    """Raise NamespaceError if an operation's namespace breaks LangGraph's rules."""
    if isinstance(op, SearchOp):
        prefix: Any = cast(Any, op.namespace_prefix)
        if not isinstance(prefix, tuple | list) or not all(isinstance(label, str) for label in prefix):
            raise NamespaceError(
                f"the namespace prefix {prefix!r} is not a tuple of texts: write ('users', 'ann')"
            )
    paths: list[Any] = [op.namespace] if isinstance(op, GetOp | PutOp) else []
    if isinstance(op, ListNamespacesOp):
        paths = [condition.path for condition in op.match_conditions or ()]
    for path in paths:
        if isinstance(path, str):
            raise NamespaceError(f"the namespace {path!r} is text: write the tuple ({path!r},)")
    try:
        validate_op_namespace(op)
    except InvalidNamespaceError as error:
        raise NamespaceError(str(error)) from error
    if isinstance(op, PutOp) and not op.namespace:
        raise NamespaceError("an item needs a namespace of at least one label")


def to_text(namespace: Iterable[str]) -> str:
    """'users.ann.' for ('users', 'ann')."""
    # Not as a format string: of a str enum, that would show its name instead of its text.
    return ".".join([*namespace, ""])


def from_text(text: str) -> Namespace:
    """('users', 'ann') for 'users.ann.'."""
    return tuple(text[:-1].split("."))


def item_id(namespace: Iterable[str], key: object) -> tuple[str, str]:
    """Namespace text and key of one item.

    Raises InvalidIdentifierError for a key that is no text, or for one that Postgres cannot keep.
    """
    if not isinstance(key, str):
        raise InvalidIdentifierError(f"the key {key!r} is a {type(key).__name__}; keys are text")
    text = to_text(namespace)
    if "\0" in key:
        raise InvalidIdentifierError(f"the key {key!r} holds a NUL character, which Postgres cannot keep")
    check_size(text, key)
    return text, str.__str__(key)


def check_size(text: str, key: str, *, sealed: bool = False) -> None:
    """Raise InvalidIdentifierError for a namespace and key that are too long, as they are stored."""
    size = _size(text, "namespace") + _size(key, "key")
    if size > MAX_ID_BYTES:
        raise InvalidIdentifierError(
            f"namespace and key take {size} bytes together{', sealed' * sealed}, {MAX_ID_BYTES} is the most: "
            "put long text into the value and a digest of it into the key"
        )


def scope(prefix: Sequence[str]) -> Scope:
    """The range that holds a namespace and all below it; the empty prefix is everything."""
    text = to_text(prefix)
    _size(text, "namespace")
    return Scope(text, f"{text[:-1]}/" if text else _BEYOND)


def listed(
    conditions: Iterable[MatchCondition], stored: Callable[[str], str] = str.__str__
) -> tuple[Scope, list[str]]:
    """Return the range of namespaces that may fulfil all conditions, and the patterns they must match too.

    The longest prefix without a wildcard is the range. `stored` tells how a label is stored.
    """
    paths = [
        (condition.match_type, tuple(label if label == "*" else stored(label) for label in condition.path))
        for condition in conditions
        if condition.path
    ]
    for _, path in paths:
        _size(to_text(path), "namespace")
    fixed = [
        path[: path.index("*")] if "*" in path else path
        for match_type, path in paths
        if match_type == "prefix"
    ]
    longest = max(fixed, key=len, default=())
    patterns = [
        _pattern(match_type, path)
        for match_type, path in paths
        if match_type != "prefix" or longest[: len(path)] != path
    ]
    return scope(longest), patterns


def _pattern(match_type: str, path: Sequence[str]) -> str:
    # \A and not ^, \Z and not $: labels may hold newlines.
    labels = "".join("[^.]+[.]" if label == "*" else f"{re.escape(label)}[.]" for label in path)
    if match_type == "prefix":
        return rf"\A{labels}"
    if match_type == "suffix":
        return rf"(\A|[.]){labels}\Z"
    raise InvalidInputError(f"match_type {match_type!r}: write 'prefix' or 'suffix'")


def _size(text: str, what: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidIdentifierError(
            f"the {what} {text!r} holds half a surrogate pair, which is no character"
        ) from error
