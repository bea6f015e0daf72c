"""Known answers of three-way merges by shape, driver and policy."""

from __future__ import annotations

import operator
from collections import namedtuple
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, field_validator

from haive_persistence.checkpointer.versions.merge import (
    MISSING,
    Conflict,
    cherry_pick,
    drivers_of,
    merge_states,
    revert,
)
from haive_persistence.codec import SafeSerializer
from haive_persistence.errors import InvalidInputError, MergeConflictError

A, B, C = "a", "b", "c"
X = MISSING


def state(value: Any) -> dict[str, Any]:
    return {} if value is X else {"channel": value}


def merged(base: Any, ours: Any, theirs: Any, **kwargs: Any) -> tuple[Any, tuple[Conflict, ...]]:
    found = merge_states(state(base), state(ours), state(theirs), **kwargs)
    return found.values.get("channel", X), found.conflicts


@pytest.mark.parametrize(
    ("base", "theirs", "ours", "result", "kind"),
    [  # lakeFS's table: base, source, destination, result; a conflict leaves the destination as it is
        (A, A, A, A, None),
        (A, B, B, B, None),
        (A, B, C, C, "edit/edit"),
        (A, A, B, B, None),
        (A, B, A, B, None),
        (A, X, X, X, None),
        (A, B, X, X, "edit/delete"),
        (A, X, B, B, "edit/delete"),
        (A, A, X, X, None),
        (A, X, A, X, None),
        (X, B, X, B, None),
        (X, X, B, B, None),
        (X, B, B, B, None),
        (X, B, C, C, "add/add"),
    ],
)
@pytest.mark.parametrize("depth", [0, 2])
def test_truth_table(base: Any, theirs: Any, ours: Any, result: Any, kind: str | None, depth: int) -> None:
    def at_depth(value: Any) -> Any:
        nested = state(value)
        for _ in range(depth):
            nested = {"channel": nested}
        return nested

    found = merge_states(at_depth(base), at_depth(ours), at_depth(theirs))
    assert found.values == at_depth(result)
    assert [conflict.kind for conflict in found.conflicts] == ([kind] if kind else [])
    for conflict in found.conflicts:
        assert conflict.path == ("channel",) * (depth + 1)
        assert (conflict.base, conflict.ours, conflict.theirs) == (base, ours, theirs)
    assert found.changed == ({"channel"} if at_depth(result) != at_depth(ours) else set())


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0.0, -0.0), ("1", 1), ([1], (1,)), ({1}, frozenset({1})), ({"a": 1}, {"a": True})],
)
def test_values_are_compared_type_by_type(one: Any, other: Any) -> None:
    assert repr(merged(one, one, other)) == repr((other, ()))
    assert repr(merged(one, other, one)) == repr((other, ()))


def test_nan_equals_itself() -> None:
    found = merge_states({"x": float("nan")}, {"x": float("nan")}, {"x": 2.0})
    assert found.values == {"x": 2.0}
    assert not found.conflicts


def test_dicts_merge_key_by_key_and_report_the_path() -> None:
    base = {"model": {"name": "m", "temperature": 0.1, "old": 1}, "on": True}
    ours = {"model": {"name": "m2", "temperature": 0.1, "new": 1}, "on": True}
    theirs = {"model": {"name": "m3", "temperature": 0.2, "old": 1}, "on": False}
    value, conflicts = merged(base, ours, theirs)
    assert value == {"model": {"name": "m2", "temperature": 0.2, "new": 1}, "on": False}
    assert [(c.path, c.base, c.ours, c.theirs) for c in conflicts] == [
        (("channel", "model", "name"), "m", "m2", "m3")
    ]


def test_a_dict_that_began_as_none_merges_key_by_key() -> None:
    assert merged(None, {"a": 1}, {"b": 2}) == ({"a": 1, "b": 2}, ())


def test_sets_take_what_either_added_and_drop_what_either_removed() -> None:
    assert merged({1, 2, 3}, {1, 2, 4}, {2, 3, 5}) == ({2, 4, 5}, ())
    value, conflicts = merged(X, frozenset({1}), frozenset({2}))
    assert (value, type(value), conflicts) == (frozenset({1, 2}), frozenset, ())


def test_lists_without_ids_merge_where_they_do_not_meet() -> None:
    assert merged([1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 4, 5]) == ([0, 1, 2, 4, 5], ())


def test_lists_that_meet_are_one_conflict_with_usable_sides() -> None:
    value, (conflict,) = merged([1, 2, 3], [1, "o", 3], [0, 1, "t", 3])
    assert value == [0, 1, "o", 3]
    assert (conflict.kind, conflict.path) == ("edit/edit", ("channel",))
    assert (conflict.base, conflict.ours, conflict.theirs) == ([0, 1, 2, 3], [0, 1, "o", 3], [0, 1, "t", 3])


class Plan(BaseModel):
    goal: str
    steps: list[str] = []
    done: bool = False
    calls: int = 0

    @field_validator("goal")
    @classmethod
    def _refuse(cls, goal: str) -> str:
        if goal == "forbidden":
            raise AssertionError("a validator ran")
        return goal


@dataclass
class Budget:
    limit: int
    spent: int = 0

    def __post_init__(self) -> None:
        if self.limit == 13:
            raise AssertionError("__post_init__ ran")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("__eq__ ran")

    __hash__ = None  # type: ignore[assignment]


Point = namedtuple("Point", "x y")


def test_models_merge_field_by_field_without_validators() -> None:
    base, ours, theirs = (
        Plan(goal="g"),
        Plan(goal="g", done=True),
        Plan.model_construct(goal="forbidden", steps=[]),
    )
    before = base.model_copy(deep=True), ours.model_copy(deep=True)
    value, conflicts = merged(base, ours, theirs)
    assert type(value) is Plan
    assert (value.goal, value.done, value.steps, value.calls) == ("forbidden", True, [], 0)
    assert value.model_fields_set == {"goal", "done", "steps"}
    assert not conflicts
    assert (base, ours) == before
    value, (conflict,) = merged(base, Plan(goal="o"), Plan(goal="t", done=True))
    assert (value.goal, value.done, conflict.path) == ("o", True, ("channel", "goal"))


def test_dataclasses_merge_field_by_field_without_their_code() -> None:
    theirs = object.__new__(Budget)
    theirs.__dict__ |= {"limit": 13, "spent": 0}
    value, conflicts = merged(Budget(1), Budget(1, spent=5), theirs)
    assert type(value) is Budget
    assert value.__dict__ == {"limit": 13, "spent": 5}
    assert not conflicts


def test_tuples_merge_by_position() -> None:
    value, conflicts = merged(Point(1, 2), Point(3, 2), Point(1, 4))
    assert (value, type(value), conflicts) == (Point(3, 4), Point, ())
    value, (conflict,) = merged(Point(1, 2), Point(3, 2), Point(4, 5))
    assert (value, conflict.path) == (Point(3, 5), ("channel", "x"))
    assert merged((1, 2), (3, 2), (1, 4)) == ((3, 4), ())
    assert merged((1, 2), (1, 2, 3), (1, 4))[1][0].kind == "edit/edit"


def test_numbers_and_text_are_last_values() -> None:
    assert [c.kind for c in merged(1, 2, 3)[1]] == ["edit/edit"]
    assert merged("a", "ab", "ac")[0] == "ab"


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result"),
    [
        (10, 13, 15, 18),
        (10, 13, 13, 16),
        (0.25, 0.5, 0.75, 1.0),
        (Decimal("1"), Decimal("1.5"), Decimal("3"), Decimal("3.5")),
        ([1], [1, 2], [1, 2, 3], [1, 2, 2, 3]),
        ((), (1,), (2,), (1, 2)),
        ("log:", "log: a", "log: b", "log: a b"),
        (MISSING, [1], [2], [1, 2]),
        (MISSING, 1, 2, 3),
        ([1, 2], [2], [1, 2, 3], [2, 3]),
    ],
)
def test_additive_channels_take_what_both_added(base: Any, ours: Any, theirs: Any, result: Any) -> None:
    found = merge_states(
        state(base) | {"other": 1},
        state(ours) | {"other": 1},
        state(theirs) | {"other": 2},
        drivers={"channel": "add"},
    )
    assert found.values["channel"] == result
    assert not found.conflicts


def test_messages_under_an_additive_reducer_are_united() -> None:
    common = [HumanMessage("q", id="1")]
    ours, theirs = (
        [*common, AIMessage("x", id="2")],
        [*common, AIMessage("x", id="2"), AIMessage("y", id="3")],
    )
    value, conflicts = merged(common, ours, theirs, drivers={"channel": "add"})
    assert [m.id for m in value] == ["1", "2", "3"]
    assert not conflicts


def test_a_custom_reducers_list_is_appended_and_its_numbers_are_not_added() -> None:
    assert merged([1], [1, 2], [1, 3], drivers={"channel": "reduced"}) == ([1, 2, 3], ())
    assert merged(1, 2, 3, drivers={"channel": "reduced"})[1][0].kind == "edit/edit"


def test_opaque_channels_are_not_taken_apart() -> None:
    value, (conflict,) = merged({"a": 1}, {"a": 2}, {"a": 1, "b": 2}, drivers={"channel": "opaque"})
    assert (value, conflict.path) == ({"a": 2}, ("channel",))


def test_a_callable_driver_decides_and_its_error_is_a_conflict() -> None:
    seen = []

    def longest(base: Any, ours: Any, theirs: Any, path: tuple[Any, ...]) -> Any:
        seen.append((base, ours, theirs, path))
        return max(ours, theirs, key=len)

    assert merged("a", "abc", "ab", drivers={"channel": longest}) == ("abc", ())
    assert seen == [("a", "abc", "ab", ("channel",))]
    value, (conflict,) = merged(1, 2, 3, drivers={"channel": longest})
    assert (value, conflict.kind) == (2, "driver")
    assert "TypeError" in (conflict.detail or "")


def test_unknown_drivers_and_policies_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'channel'.*'shape'"):
        merged(1, 1, 1, drivers={"channel": "append"})
    with pytest.raises(InvalidInputError, match="primary_wins"):
        merged(1, 1, 1, policy={"channel": "ours"})
    with pytest.raises(InvalidInputError, match="path"):
        merged(1, 1, 1, policy={5: "fail"})


BASE = {"model": "m", "size": 1, "keep": 0}
OURS = {"model": "o", "size": 2, "keep": 0}
THEIRS = {"model": "t", "size": 3, "keep": 1}


@pytest.mark.parametrize(
    ("policy", "model", "size", "open_"),
    [
        (None, "o", 2, ["model", "size"]),
        ("primary_wins", "o", 2, []),
        ("secondary_wins", "t", 3, []),
        ({"*": "secondary_wins"}, "t", 3, []),
        ({"channel": "secondary_wins"}, "t", 3, []),
        ({"channel.model": "secondary_wins"}, "t", 2, ["size"]),
        ({("channel", "model"): "secondary_wins"}, "t", 2, ["size"]),
        ({"channel": "secondary_wins", "channel.model": "primary_wins"}, "o", 3, []),
        ({"*.model": "primary_wins", "channel.*": "secondary_wins"}, "o", 3, []),
        ({"other": "secondary_wins"}, "o", 2, ["model", "size"]),
        ({"channel.size": lambda b, o, t, path: o + t - b}, "o", 4, ["model"]),
        ({"channel": "union"}, "o", 2, ["model", "size"]),
    ],
)
def test_policies_decide_conflicts_only(policy: Any, model: str, size: int, open_: list[str]) -> None:
    value, conflicts = merged(BASE, OURS, THEIRS, policy=policy)
    assert value == {"model": model, "size": size, "keep": 1}
    assert [c.path[-1] for c in conflicts] == open_


def test_fail_names_every_conflict() -> None:
    with pytest.raises(MergeConflictError, match=r"edit/edit at channel\.model") as caught:
        merged(BASE, OURS, THEIRS, policy={"channel": "fail"})
    assert [c.path[-1] for c in caught.value.conflicts] == ["model", "size"]
    assert caught.value.code == "merge_conflict"


def test_union_keeps_both() -> None:
    assert merged([1], [1, 2], [1, 3], policy="union") == ([1, 2, 3], ())
    assert merged("a", X, "b", policy="union") == ("b", ())
    assert merged("a", "b", X, policy="union") == ("b", ())


def test_a_policy_may_delete() -> None:
    assert merged("a", "b", "c", policy={"channel": lambda *_: MISSING}) == (X, ())


def test_cherry_pick_applies_a_change_and_revert_takes_it_out() -> None:
    q = {"plan": ["a"], "n": 1, "config": {"x": 1}}
    p = {"plan": ["a", "b"], "n": 1, "config": {"x": 1, "y": 2}}
    onto = {"plan": ["a"], "n": 7, "config": {"x": 3}}
    picked = cherry_pick(q, p, onto)
    assert picked.values == {"plan": ["a", "b"], "n": 7, "config": {"x": 3, "y": 2}}
    assert picked.changed == {"plan", "config"}
    assert revert(p, q, picked.values).values == onto
    assert revert(p, q, p).values == q
    assert cherry_pick(q, p, q).values == p


def test_deep_values_merge() -> None:
    def nest(leaf: Any, depth: int) -> Any:
        for _ in range(depth):
            leaf = [leaf]
        return leaf

    assert merged(nest(1, 400), nest(1, 400), nest(2, 400))[1] == ()
    _, (conflict,) = merged(nest({"a": 1}, 300), nest({"a": 2}, 300), nest({"a": 1, "b": 1}, 300))
    assert conflict.kind == "edit/edit"


def test_opaque_objects_are_compared_as_they_are_stored() -> None:
    numpy = pytest.importorskip("numpy")
    one = numpy.arange(3)
    value, conflicts = merged(one, one.copy(), one + 1)
    assert (value.tolist(), conflicts) == ([1, 2, 3], ())
    assert merged(one, one + 2, one + 1)[1][0].kind == "edit/edit"


def test_conflicts_are_data() -> None:
    found = merge_states({"a": Point(1, 2), "b": 1}, {"a": Point(3, 2), "b": 2}, {"a": Point(4, 2)})
    serializer = SafeSerializer()
    stored = [serializer.loads_typed(serializer.dumps_typed(c.to_dict())) for c in found.conflicts]
    assert tuple(map(Conflict.from_dict, stored)) == found.conflicts
    assert found.conflicts[1].theirs is MISSING
    assert [str(c) for c in found.conflicts] == ["edit/edit at a.x", "edit/delete at b"]
    for junk in (
        {},
        {"path": [], "kind": "order", "taken": "ours"},
        {"path": ["a"], "kind": "x", "taken": "ours"},
    ):
        with pytest.raises(InvalidInputError):
            Conflict.from_dict(junk)


def test_drivers_are_named_by_channel_not_by_graph() -> None:
    with pytest.raises(InvalidInputError, match="compiled LangGraph graph"):
        drivers_of(operator.add)


class Row(BaseModel):
    id: str
    text: str = ""


def unbuilt(value: Any) -> Any:
    return SafeSerializer(allowed_msgpack_modules=None).loads_typed(SafeSerializer().dumps_typed(value))


def test_unbuilt_values_merge_whole_and_are_stored_as_what_they_were() -> None:
    base = unbuilt([Row(id="1"), Row(id="2")])
    ours, theirs = (
        unbuilt([Row(id="1", text="o"), Row(id="2")]),
        unbuilt([Row(id="1"), Row(id="2"), Row(id="3")]),
    )
    value, conflicts = merged(base, ours, theirs)
    assert not conflicts
    serializer = SafeSerializer()
    assert serializer.loads_typed(serializer.dumps_typed(value)) == [
        Row(id="1", text="o"),
        Row(id="2"),
        Row(id="3"),
    ]
    value, (conflict,) = merged(base[0], unbuilt(Row(id="1", text="o")), unbuilt(Row(id="1", text="t")))
    assert (conflict.kind, conflict.path) == ("edit/edit", ("channel",))
    stored = serializer.loads_typed(serializer.dumps_typed(conflict.to_dict()))
    assert Conflict.from_dict(stored).theirs == Row(id="1", text="t")


def test_criss_cross_merges_take_the_merge_of_their_bases_as_base() -> None:
    root = {"a": 1, "b": 1, "list": [1]}
    one, other = {"a": 2, "b": 1, "list": [1, 2]}, {"a": 1, "b": 2, "list": [0, 1]}
    crossed, recrossed = merge_states(root, one, other).values, merge_states(root, other, one).values
    ours, theirs = {**crossed, "a": 3}, {**recrossed, "b": 3}
    base = merge_states(root, one, other).values
    found = merge_states(base, ours, theirs)
    assert found.values == {"a": 3, "b": 3, "list": [0, 1, 2]}
    assert not found.conflicts
    alone = merge_states(one, {**ours, "b": 4}, theirs)  # one base of the two alone: a change is seen twice
    assert [c.path for c in alone.conflicts] == [("b",)]
