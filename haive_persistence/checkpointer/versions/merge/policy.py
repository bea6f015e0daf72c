"""Policies: what decides a conflict, by the path it is at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from haive_persistence.checkpointer.versions.merge.values import MISSING, token
from haive_persistence.errors import InvalidInputError

Resolver = Callable[[Any, Any, Any, tuple[Any, ...]], Any]
"""Takes base, ours, theirs and the path; returns the value to take. `MISSING` stands for an absent one."""
PolicyName = Literal["primary_wins", "secondary_wins", "union", "fail"]
Rule = PolicyName | Resolver
"""What decides a conflict: a name, or a callable."""
Policy = Mapping[str | tuple[Any, ...], Rule]
"""A rule for each path and all below: "config", "config.model", ("config", "a.b"), "messages.*.content"."""

_NAMES = frozenset(get_args(PolicyName))


class Policies:
    """The rules of a merge, the most specific first."""

    def __init__(self, policy: Policy | Rule | None) -> None:
        rules: Policy = {} if policy is None else policy if isinstance(policy, Mapping) else {"*": policy}
        self._rules: list[tuple[tuple[Any, ...], Rule]] = [
            (_segments(path), _checked(path, rule)) for path, rule in rules.items()
        ]
        self._rules.sort(key=lambda rule: (-len(rule[0]), rule[0].count("*")))

    def find(self, path: Sequence[Any]) -> Rule | None:
        """The rule for what is at a path, None if there is none."""
        for pattern, rule in self._rules:
            if len(pattern) <= len(path) and all(map(_matches, pattern, path)):
                return rule
        return None


def _segments(path: object) -> tuple[Any, ...]:
    if isinstance(path, str) and path:
        return tuple(path.split("."))
    if isinstance(path, tuple) and path:
        return path
    raise InvalidInputError(
        f'a policy is for a path like "config.model" or ("config", "model"), not {path!r}; "*" is any key'
    )


def _checked(path: object, rule: Rule) -> Rule:
    if callable(rule) or rule in _NAMES:
        return rule
    raise InvalidInputError(
        f"the policy of {path!r} must be one of {sorted(_NAMES)} or a callable, not {rule!r}"
    )


def _matches(segment: Any, key: Any) -> bool:
    return segment in ("*", key) or (isinstance(segment, str) and segment == str(key))


def unite(ours: Any, theirs: Any) -> Any:
    """Both values, for the policy "union"; MISSING if there is no such thing."""
    if ours is MISSING or theirs is MISSING:
        return theirs if ours is MISSING else ours
    if type(ours) is not type(theirs):
        return MISSING
    if isinstance(ours, (set, frozenset)):
        return ours | theirs
    if type(ours) is list:
        known = set(map(token, ours))
        return ours + [item for item in theirs if token(item) not in known]
    return MISSING
