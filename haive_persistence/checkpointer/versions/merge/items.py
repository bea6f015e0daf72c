"""The merge of lists whose items have ids: messages above all.

No item is lost and none is there twice, each side's order survives where the two do not contradict, and
tool results stay behind their calls. `docs/design/0007-merge.md` gives the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.messages.base import BaseMessage

from haive_persistence.checkpointer.versions.merge.conflicts import Kind
from haive_persistence.checkpointer.versions.merge.tools import answered_calls, calls_of, results_behind_calls
from haive_persistence.checkpointer.versions.merge.values import MISSING, encoded, parts_of, same

if TYPE_CHECKING:
    from haive_persistence.checkpointer.versions.merge.three_way import Path, ThreeWay

Id = Any
_ID_TYPES = frozenset({str, int, UUID})


def ids_of(items: Sequence[Any]) -> list[Id] | None:
    """The id of each item; None if one has none, or two have the same.

    A message without an id is known by its content and its number among equals.
    """
    found: list[Id] = []
    equals: Counter[str] = Counter()
    for item in items:
        id_ = id_of(item)
        if id_ is None and isinstance(item, BaseMessage):
            data = encoded(item)
            if data is None:
                return None
            content = blake2b(data, digest_size=16).hexdigest()
            id_ = f"content:{content}:{equals[content]}"
            equals[content] += 1
        if type(id_) not in _ID_TYPES:
            return None
        found.append(id_)
    return found if len(set(found)) == len(found) else None


def id_of(item: Any) -> Id:
    """The id that an item has, None if it has none."""
    if isinstance(item, BaseMessage):
        return item.id
    parts = item if isinstance(item, dict) else parts_of(item)  # also of an unbuilt object
    return dict.get(parts, "id") if isinstance(parts, dict) else None


class ItemMerge:
    """The merge of three lists, given as dicts of their items by id."""

    def __init__(
        self,
        merge: ThreeWay,
        path: Path,
        base: Mapping[Id, Any],
        ours: Mapping[Id, Any],
        theirs: Mapping[Id, Any],
    ) -> None:
        self._merge = merge
        self._path = path
        self._base, self._ours, self._theirs = base, ours, theirs
        self._items: dict[Id, Any] = {}

    def merged(self) -> list[Any]:
        """The merged list."""
        first = len(self._merge.conflicts)
        for id_ in [*self._ours, *(id_ for id_ in self._theirs if id_ not in self._ours)]:
            self._set(id_, self._merge.value(*self._sides(id_), (*self._path, id_)))
        self._keep_calls_of_results()
        has_results = any(map(answered_calls, self._items.values()))
        if has_results:
            self._keep_one_result_per_call()
        order = self._ordered()
        if has_results:
            ordered = {id_: self._items[id_] for id_ in order}
            order = results_behind_calls(ordered, self._ours, self._theirs)
        self._merge.place(first, self._path, self._orders(), order)
        return [self._items[id_] for id_ in order]

    def _sides(self, id_: Id) -> tuple[Any, Any, Any]:
        return self._base.get(id_, MISSING), self._ours.get(id_, MISSING), self._theirs.get(id_, MISSING)

    def _set(self, id_: Id, item: Any) -> None:
        if item is MISSING:
            self._items.pop(id_, None)
        else:
            self._items[id_] = item

    def _orders(self) -> list[list[Id]]:
        return [list(self._theirs), list(self._ours), list(self._base)]

    # --- tool results

    def _keep_one_result_per_call(self) -> None:
        """Both sides answered one call: the results are two versions of one item."""
        before = {call for item in self._base.values() for call in answered_calls(item)}
        ours, theirs = self._results_of_one_side(self._ours), self._results_of_one_side(self._theirs)
        for call, id_ in ours.items():
            other = theirs.get(call)
            if other is None or call in before or not {id_, other} <= self._items.keys():
                continue
            one, two = self._items[id_], self._items.pop(other)
            self._set(id_, self._merge.conflict("add/add", MISSING, one, two, (*self._path, id_)))

    def _results_of_one_side(self, side: Mapping[Id, Any]) -> dict[str, Id]:
        return {
            call: id_
            for id_, item in side.items()
            if not (id_ in self._ours and id_ in self._theirs)
            for call in answered_calls(item)
        }

    def _keep_calls_of_results(self) -> None:
        """Record conflicts where one side removed a call that the other answered or edited."""
        callers = [_callers(side) for side in (self._ours, self._theirs)]
        self._dispute(self._ours, self._theirs, callers[1])
        self._dispute(self._theirs, self._ours, callers[0])

    def _dispute(self, side: Mapping[Id, Any], other: Mapping[Id, Any], known: Mapping[str, Id]) -> None:
        settled = {found.path for found in self._merge.conflicts}
        results: dict[str, list[Id]] = {}
        for id_, item in side.items():
            for call in answered_calls(item):
                results.setdefault(call, []).append(id_)
        for id_, item in side.items():
            lost = [call for call in calls_of(item) if call not in known] if id_ in self._base else []
            answers = [answer for call in lost for answer in results.get(call, ())]
            edited = id_ not in other and self._is_changed(id_, side)
            if lost and (edited or any(self._is_changed(answer, side) for answer in answers)):
                for disputed in (id_, *(answer for answer in answers if answer not in other)):
                    self._settle(disputed, settled)

    def _is_changed(self, id_: Id, side: Mapping[Id, Any]) -> bool:
        return not same(self._base.get(id_, MISSING), side[id_])

    def _settle(self, id_: Id, settled: set[Path]) -> None:
        """Record a conflict about an item as a whole, unless there is one."""
        path = (*self._path, id_)
        if path not in settled:
            settled.add(path)
            base, ours, theirs = self._sides(id_)
            kind: Kind = "edit/delete" if ours is MISSING or theirs is MISSING else "edit/edit"
            self._set(id_, self._merge.conflict(kind, base, ours, theirs, path))

    # --- order

    def _ordered(self) -> list[Id]:
        ours, theirs = ([id_ for id_ in side if id_ in self._items] for side in (self._ours, self._theirs))
        spine = self._spine(
            [id_ for id_ in ours if id_ in self._theirs], [id_ for id_ in theirs if id_ in self._ours]
        )
        return around(spine, ours, theirs)

    def _spine(self, ours: list[Id], theirs: list[Id]) -> list[Id]:
        """The order of the items that both sides have."""
        if ours == theirs:
            return ours
        shared = set(ours)
        before = [id_ for id_ in self._base if id_ in shared]
        known = set(before)
        if [id_ for id_ in theirs if id_ in known] == before:
            return ours
        if [id_ for id_ in ours if id_ in known] == before:
            return theirs
        chosen = self._merge.conflict("order", before, ours, theirs, self._path, united=ours)
        return list(chosen) if isinstance(chosen, list) and sorted_alike(chosen, ours) else ours


def _callers(side: Mapping[Id, Any]) -> dict[str, Id]:
    return {call: id_ for id_, item in side.items() for call in calls_of(item)}


def sorted_alike(one: Sequence[Id], other: Sequence[Id]) -> bool:
    """True if both hold the same ids, in any order."""
    return len(one) == len(other) and set(one) == set(other)


def around(spine: Sequence[Id], *orders: Sequence[Id]) -> list[Id]:
    """The spine; what only one order has stands behind the item of the spine that it follows there."""
    fixed = set(spine)
    behind: list[dict[Id, list[Id]]] = []
    for order in orders:
        last = None
        own: dict[Id, list[Id]] = {}
        for id_ in order:
            if id_ in fixed:
                last = id_
            else:
                own.setdefault(last, []).append(id_)
        behind.append(own)
    merged: list[Id] = []
    for id_ in (None, *spine):
        if id_ is not None:
            merged.append(id_)
        for own in behind:
            merged += own.get(id_, ())
    return merged
