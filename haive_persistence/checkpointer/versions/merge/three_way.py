"""`ThreeWay`: the merge of one value by its shape, its conflicts and the policies that decide them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from haive_persistence.checkpointer.versions.merge.conflicts import Conflict, Kind
from haive_persistence.checkpointer.versions.merge.items import ItemMerge, ids_of
from haive_persistence.checkpointer.versions.merge.lists import diff3
from haive_persistence.checkpointer.versions.merge.policy import Policies, Policy, Rule, unite
from haive_persistence.checkpointer.versions.merge.values import MISSING, parts_of, rebuild, same
from haive_persistence.errors import MergeConflictError

MAX_DEPTH = 64  # containers in containers; what is deeper is not taken apart

Path = tuple[Any, ...]


class ThreeWay:
    """One merge: its policies, and the conflicts found so far. No method changes its arguments."""

    def __init__(self, policy: Policy | Rule | None = None) -> None:
        self._policies = Policies(policy)
        self._failed: list[Conflict] = []
        self.conflicts: list[Conflict] = []

    def raise_failed(self) -> None:
        """Raise MergeConflictError if a conflict was found whose policy is "fail"."""
        if self._failed:
            raise MergeConflictError(
                f"the merge has {len(self._failed)} conflicts whose policy is 'fail': "
                f"{', '.join(map(str, self._failed[:5]))}; change one side, or give another policy",
                tuple(self._failed),
            )

    def value(self, base: Any, ours: Any, theirs: Any, path: Path) -> Any:
        """The merged value; MISSING stands for one that is absent, as an argument and as the result."""
        if same(ours, theirs):
            return ours
        if same(base, ours):
            return theirs
        if same(base, theirs):
            return ours
        if ours is MISSING or theirs is MISSING:
            return self.conflict("edit/delete", base, ours, theirs, path)
        merged = self._by_shape(base, ours, theirs, path)
        if merged is not MISSING:
            return merged
        return self.conflict("add/add" if base is MISSING else "edit/edit", base, ours, theirs, path)

    def conflict(
        self,
        kind: Kind,
        base: Any,
        ours: Any,
        theirs: Any,
        path: Path,
        *,
        united: Any = MISSING,
        detail: str | None = None,
    ) -> Any:
        """The value that the path's policy takes; without one, ours, and the conflict is recorded.

        `united` is what the policy "union" takes, if not both values put together.
        """
        rule = self._policies.find(path)
        if rule == "primary_wins":
            return ours
        if rule == "secondary_wins":
            return theirs
        if rule == "union":
            both = unite(ours, theirs) if united is MISSING else united
            if both is not MISSING:
                return both
        elif callable(rule):
            return rule(base, ours, theirs, path)
        found = Conflict(path=path, kind=kind, base=base, ours=ours, theirs=theirs, detail=detail)
        (self._failed if rule == "fail" else self.conflicts).append(found)
        return ours

    def place(self, since: int, path: Path, orders: Sequence[Sequence[Any]], there: Iterable[Any]) -> None:
        """Tell the conflicts about missing items of a list, from number `since` on, what is in front."""
        present = set(there)
        for number, found in enumerate(self.conflicts[since:], since):
            if len(found.path) == len(path) + 1 and found.path[-1] not in present:
                order = next(ids for ids in orders if found.path[-1] in ids)
                self.conflicts[number] = replace(found, after=_before(found.path[-1], order, present))

    def _by_shape(self, base: Any, ours: Any, theirs: Any, path: Path) -> Any:
        """The merge of two containers of one class; MISSING if they are anything else."""
        cls = type(ours)
        if cls is not type(theirs) or len(path) > MAX_DEPTH:
            return MISSING
        known = base if type(base) is cls else MISSING
        if cls is dict:
            return self._dict({} if known is MISSING else known, ours, theirs, path)
        if cls is set or cls is frozenset:
            before = cls() if known is MISSING else known
            return (ours & theirs) | (ours - before) | (theirs - before)
        if cls is list:
            return self._list(base, [] if known is MISSING else known, ours, theirs, path)
        return self._object(known, ours, theirs, path)

    def _dict(self, base: dict[Any, Any], ours: dict[Any, Any], theirs: dict[Any, Any], path: Path) -> Any:
        merged: dict[Any, Any] = {}
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            parts = base.get(key, MISSING), ours.get(key, MISSING), theirs.get(key, MISSING)
            value = self.value(*parts, (*path, key))
            if value is not MISSING:
                merged[key] = value
        return merged

    def _list(self, given: Any, base: list[Any], ours: list[Any], theirs: list[Any], path: Path) -> Any:
        if merged := self.items(base, ours, theirs, path):
            return merged[0]
        hunks = diff3(base, ours, theirs)
        before, one, other, both = ([item for hunk in hunks for item in hunk[side]] for side in range(4))
        if all(hunk.ours is hunk.theirs for hunk in hunks):
            return one
        kind: Kind = "add/add" if given is MISSING else "edit/edit"
        return self.conflict(kind, MISSING if given is MISSING else before, one, other, path, united=both)

    def items(
        self, base: list[Any], ours: list[Any], theirs: list[Any], path: Path
    ) -> tuple[list[Any]] | None:
        """The merge of lists of messages, or of things with ids; None if they are not."""
        ids = [ids_of(items) for items in (base, ours, theirs)]
        if None in ids:
            return None
        maps = [
            dict(zip(keys or (), items, strict=True))
            for keys, items in zip(ids, (base, ours, theirs), strict=True)
        ]
        return (ItemMerge(self, path, *maps).merged(),)

    def _object(self, base: Any, ours: Any, theirs: Any, path: Path) -> Any:
        one, other = parts_of(ours), parts_of(theirs)
        if one is None or other is None:
            return MISSING
        before = None if base is MISSING else parts_of(base)
        if isinstance(one, dict) and isinstance(other, dict):
            merged = self._dict(before if isinstance(before, dict) else {}, one, other, path)
            complete = one.keys() & other.keys() <= merged.keys()
            return rebuild(ours, theirs, merged) if complete else MISSING
        if len(one) != len(other):
            return MISSING
        if not isinstance(before, list) or len(before) != len(one):
            before = [MISSING] * len(one)
        names = getattr(type(ours), "_fields", range(len(one)))
        parts = [
            self.value(b, o, t, (*path, name))
            for name, b, o, t in zip(names, before, one, other, strict=True)
        ]
        gone = any(part is MISSING for part in parts)
        return MISSING if gone else rebuild(ours, theirs, parts)


def _before(id_: Any, order: Sequence[Any], present: set[Any]) -> tuple[Any, ...]:
    """The ids before one, the nearest first, as far as the first that is present."""
    found: list[Any] = []
    for other in reversed(order[: order.index(id_)]):
        found.append(other)
        if other in present:
            break
    return tuple(found)
