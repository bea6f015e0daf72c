"""Choices for recorded conflicts, and what a policy or a trigger channel does at its edges."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
from pydantic import BaseModel

from haive_persistence.checkpointer.versions.merge import MISSING, Conflict, merge_states, resolve
from haive_persistence.checkpointer.versions.merge.channels import Channels, merge_trigger
from haive_persistence.checkpointer.versions.merge.three_way import ThreeWay
from haive_persistence.errors import InvalidInputError

Point = namedtuple("Point", "x y")


class Config(BaseModel):
    model: str
    limits: dict[str, int] = {}


BASE = {
    "config": Config(model="b", limits={"a": 1}),
    "at": Point(0, 0),
    "n": 1,
    "rows": [{"id": 1}, {"id": 2}],
}
OURS = {
    "config": Config(model="o", limits={"a": 2}),
    "at": Point(1, 0),
    "n": 2,
    "rows": [{"id": 2}, {"id": 1}],
}
THEIRS = {
    "config": Config(model="t", limits={"a": 3}),
    "at": Point(2, 0),
    "n": 3,
    "rows": [{"id": 3}, {"id": 2}],
}


def conflicted() -> tuple[dict[str, Any], tuple[Conflict, ...]]:
    found = merge_states(BASE, OURS, THEIRS)
    return found.values, found.conflicts


def test_choices_are_sides_values_or_callables_by_number_or_path() -> None:
    values, conflicts = conflicted()
    assert [c.path for c in conflicts] == [
        ("config", "model"),
        ("config", "limits", "a"),
        ("at", "x"),
        ("n",),
    ]
    assert {c.channel for c in conflicts} == {"config", "at", "n"}
    chosen, left = resolve(
        values,
        conflicts,
        {0: "theirs", ("config", "limits", "a"): 9, "at.x": lambda c: c.ours + c.theirs},
    )
    assert chosen["config"] == Config(model="t", limits={"a": 9})
    assert chosen["at"] == Point(3, 0)
    assert left == conflicts[3:]
    assert values["config"] == Config(model="o", limits={"a": 2})
    assert resolve(chosen, left, {0: "base"}) == ({**chosen, "n": 1}, ())
    assert resolve(chosen, left, {0: MISSING})[0] == {key: chosen[key] for key in chosen if key != "n"}


def test_the_side_taken_leaves_what_became_of_the_value() -> None:
    values, conflicts = conflicted()
    later = {**values, "n": 77}
    assert resolve(later, conflicts, {"n": "ours"})[0] == later
    assert resolve(later, conflicts, {"n": "theirs"})[0]["n"] == 3


def test_a_choice_that_fits_nothing_is_refused() -> None:
    values, conflicts = conflicted()
    for key in (4, -1, "n.x", ("x",)):
        with pytest.raises(InvalidInputError, match="0 to 3"):
            resolve(values, conflicts, {key: "ours"})
    with pytest.raises(InvalidInputError, match="'config' is gone"):
        resolve({}, conflicts, {1: "theirs"})
    with pytest.raises(InvalidInputError, match="order"):
        resolve({"rows": 5}, [Conflict(path=("rows",), kind="order", theirs=[1])], {0: "theirs"})


def test_missing_is_false_and_has_a_name() -> None:
    assert not MISSING
    assert repr(MISSING) == "MISSING"


@pytest.mark.parametrize(
    ("ours", "theirs", "result"), [({1}, {2}, {1, 2}), ([1], {2}, [1]), ({"a": 1}, {"a": 2}, {"a": 1})]
)
def test_union_of_values_not_taken_apart(ours: Any, theirs: Any, result: Any) -> None:
    found = merge_states({"x": 0}, {"x": ours}, {"x": theirs}, drivers={"x": "opaque"}, policy="union")
    assert found.values == {"x": result}
    assert bool(found.conflicts) == (not isinstance(result, set))


@pytest.mark.parametrize(
    ("driver", "base", "ours", "theirs", "result"),
    [
        ("ours", 1, 2, 3, 2),
        ("pending", 1, MISSING, 3, 3),
        ("pending", 1, 3, MISSING, 3),
        ("pending", ["a"], ["b"], ["b", "c"], ["b", "c"]),
        ("pending", {"a"}, set(), {"a", "b"}, {"b"}),
        ("add", 1, 2, "x", 2),
        ("add", "x", 2, 3, 2),
    ],
)
def test_drivers_at_their_edges(driver: Any, base: Any, ours: Any, theirs: Any, result: Any) -> None:
    sides = [{} if value is MISSING else {"x": value} for value in (base, ours, theirs)]
    found = merge_states(*sides, drivers={"x": driver})
    assert found.values == {"x": result}
    assert bool(found.conflicts) == (driver == "add")


@pytest.mark.parametrize(
    ("name", "role", "base", "ours", "theirs", "result"),
    [
        ("join:a+b:c", "barrier", {"a"}, {"a", "b"}, set(), {"a", "b"}),
        ("join:a+b:c", "barrier", {"a"}, set(), {"a", "b"}, {"a", "b"}),
        ("join:a+b:c", "barrier", MISSING, {"a"}, {"b"}, {"a", "b"}),
        ("join:a+b:c", "barrier", {"a"}, {"a"}, MISSING, {"a"}),
        (
            "join:a+b:c",
            "deferred_barrier",
            (set(), False),
            ({"a"}, False),
            ({"b"}, False),
            ({"a", "b"}, False),
        ),
        ("join:a+b:c", "deferred_barrier", MISSING, ({"a", "b"}, True), ({"b"}, False), ({"a", "b"}, True)),
        ("branch:to:a", "deferred", MISSING, (None, False), (None, True), (None, True)),
        ("__pregel_tasks", "topic", ["x"], ["a"], ["a", "b"], ["a", "b"]),
        ("__start__", "ephemeral", MISSING, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    ],
)
def test_trigger_channels_that_both_wrote(
    name: str, role: Any, base: Any, ours: Any, theirs: Any, result: Any
) -> None:
    merge, channels = ThreeWay(), Channels(None)
    assert channels.role(name, ours) == role
    assert merge_trigger(merge, channels, name, role, base, ours, theirs) == result
    assert not merge.conflicts


def test_availability_without_a_graph() -> None:
    channels = Channels(None)
    assert channels.is_available("join:a+bc:d", "barrier", {"bc", "a"})
    assert not channels.is_available("join:a+bc:d", "barrier", {"bc"})
    assert not channels.is_available("__pregel_tasks", "topic", [])
    assert channels.is_available("branch:to:a", "ephemeral", None)
    assert not channels.is_available("branch:to:a", "deferred", (None, False))
    assert not channels.is_available("x", "state", MISSING)


def test_two_pending_inputs_that_differ_are_a_conflict() -> None:
    merge = ThreeWay()
    taken = merge_trigger(merge, Channels(None), "__start__", "ephemeral", MISSING, {"go": "b"}, {"go": "c"})
    assert taken == {"go": "b"}
    assert [(c.path, c.kind) for c in merge.conflicts] == [(("__start__", "go"), "add/add")]
