"""Laws of three-way merges, as properties over states of any shape."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from haive_persistence.checkpointer.versions.merge import MISSING, Conflict, Merged, merge_states, resolve
from haive_persistence.checkpointer.versions.merge.values import same, token

KEYS = st.sampled_from("abc")
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.5, float("nan"), "", "x", b"x"]),
)


def messages() -> st.SearchStrategy[list[Any]]:
    message = st.builds(
        lambda cls, text, id_: cls(text, id=id_),
        st.sampled_from([HumanMessage, AIMessage]),
        st.sampled_from("xy"),
        st.sampled_from("123456"),
    )
    return st.lists(message, max_size=5, unique_by=lambda m: m.id)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3),
        st.tuples(inner, inner),
        st.sets(st.integers(0, 4), max_size=4),
    )


VALUES = st.one_of(st.recursive(LEAVES, containers, max_leaves=8), messages())
STATES = st.dictionaries(KEYS, VALUES, max_size=3)
DRIVERS = st.dictionaries(KEYS, st.sampled_from(["shape", "messages", "add", "reduced", "pending", "opaque"]))


@settings(deadline=None)
@given(STATES, STATES, DRIVERS)
def test_one_side_changed(base: Any, other: Any, drivers: Any) -> None:
    assert_clean(merge_states(base, base, other, drivers=drivers), other)
    found = merge_states(base, other, base, drivers=drivers)
    assert_clean(found, other)
    assert not found.changed


@settings(deadline=None)
@given(STATES, STATES, DRIVERS)
def test_both_changed_alike(base: Any, other: Any, drivers: Any) -> None:
    found = merge_states(base, other, deepcopy(other), drivers=drivers)
    assert_clean(found, other)
    assert not found.changed


def assert_clean(found: Merged, values: Any) -> None:
    assert same(found.values, values)
    assert not found.conflicts


@settings(deadline=None)
@given(STATES, STATES, STATES, DRIVERS)
def test_inputs_stay_as_they_were(base: Any, ours: Any, theirs: Any, drivers: Any) -> None:
    before = deepcopy((base, ours, theirs))
    found = merge_states(base, ours, theirs, drivers=drivers)
    resolve(found.values, found.conflicts, dict.fromkeys(range(len(found.conflicts)), "theirs"))
    assert same((base, ours, theirs), before)


@settings(deadline=None)
@given(STATES, STATES, STATES)
def test_swapped_sides_mirror_the_conflicts(base: Any, ours: Any, theirs: Any) -> None:
    first = merge_states(base, ours, theirs).conflicts
    second = merge_states(base, theirs, ours).conflicts
    assert sorted(map(repr, map(seen, first))) == sorted(repr(seen(c, swapped=True)) for c in second)


def seen(conflict: Conflict, *, swapped: bool = False) -> Any:
    ours, theirs = (conflict.theirs, conflict.ours) if swapped else (conflict.ours, conflict.theirs)
    return conflict.path, conflict.kind, token(conflict.base), token(ours), token(theirs)


@settings(deadline=None)
@given(STATES, STATES, STATES)
def test_what_is_taken_is_what_primary_wins_takes(base: Any, ours: Any, theirs: Any) -> None:
    found = merge_states(base, ours, theirs)
    assert same(found.values, merge_states(base, ours, theirs, policy="primary_wins").values)
    assert same(
        resolve(found.values, found.conflicts, dict.fromkeys(range(len(found.conflicts)), "ours"))[0],
        found.values,
    )


@settings(deadline=None)
@given(STATES, STATES, STATES)
def test_resolving_all_with_theirs_is_what_secondary_wins_takes(base: Any, ours: Any, theirs: Any) -> None:
    found = merge_states(base, ours, theirs)
    values, left = resolve(
        found.values, found.conflicts, dict.fromkeys(range(len(found.conflicts)), "theirs")
    )
    assert not left
    expected = merge_states(base, ours, theirs, policy="secondary_wins").values
    assert as_sets(values) == as_sets(expected)


def as_sets(values: Any) -> Any:
    """The state with lists of messages in any order: a message that comes back stands where it stood in theirs."""
    return {
        name: frozenset(map(token, value)) if isinstance(value, list) else token(value)
        for name, value in values.items()
    }


@settings(deadline=None)
@given(STATES, STATES, STATES)
def test_changed_names_the_channels_that_differ_from_ours(base: Any, ours: Any, theirs: Any) -> None:
    found = merge_states(base, ours, theirs)
    names = {*ours, *theirs}
    assert found.changed == {n for n in names if not same(found.values.get(n, MISSING), ours.get(n, MISSING))}


EDITS: list[Callable[[dict[str, Any]], None]] = [
    lambda s: s.update(new=1),
    lambda s: s.pop("gone"),
    lambda s: s["config"].update(a=2),
    lambda s: s["config"].pop("b"),
    lambda s: s["tags"].add(9),
    lambda s: s["tags"].discard(1),
    lambda s: s["rows"].insert(0, "first"),
    lambda s: s["rows"].pop(2),
    lambda s: s["messages"].pop(0),
    lambda s: setattr(s["messages"][-1], "content", "edited"),
    lambda s: setattr(s["messages"][-2], "name", "bob"),
    lambda s: s.update(total=s["total"] + 5),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(range(len(EDITS))), unique=True), st.integers(0, 12))
def test_disjoint_changes_commute_and_are_all_there(edits: list[int], cut: int) -> None:
    base: dict[str, Any] = {
        "gone": 0,
        "config": {"a": 1, "b": 1},
        "tags": {1, 2},
        "rows": ["a", "b", "c", "d"],
        "messages": [HumanMessage(str(n), id=str(n)) for n in range(4)],
        "total": 1,
    }
    ours, theirs, both = deepcopy(base), deepcopy(base), deepcopy(base)
    apply(edits[:cut], ours)
    apply(edits[cut:], theirs)
    apply(edits, both)
    assert_clean(merge_states(base, ours, theirs), both)
    assert_clean(merge_states(base, theirs, ours), both)


def apply(edits: list[int], state: dict[str, Any]) -> None:
    """Apply edits in one order: an index depends on what was inserted before."""
    for edit in sorted(edits, reverse=True):
        EDITS[edit](state)
