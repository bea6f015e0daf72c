"""Messages of two branches: none lost, none twice, in causal order, tool results behind their calls."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from haive_persistence.checkpointer.versions.merge import Conflict, merge_states, resolve
from haive_persistence.codec import SafeSerializer


def human(id_: str, text: str = "q") -> HumanMessage:
    return HumanMessage(text, id=id_)


def ai(id_: str, *calls: str, text: str = "") -> AIMessage:
    return AIMessage(text, id=id_, tool_calls=[{"name": "t", "args": {}, "id": call} for call in calls])


def result(id_: str, call: str, text: str = "r") -> ToolMessage:
    return ToolMessage(text, id=id_, tool_call_id=call)


def merge(
    base: list[Any], ours: list[Any], theirs: list[Any], **kwargs: Any
) -> tuple[list[Any], tuple[Conflict, ...]]:
    found = merge_states({"m": base}, {"m": ours}, {"m": theirs}, **kwargs)
    return found.values["m"], found.conflicts


def ids(messages: list[Any]) -> str:
    return " ".join(m.id for m in messages)


H, S = human("h"), SystemMessage("s", id="s")


def test_runs_are_not_mixed() -> None:
    merged, conflicts = merge([H], [H, ai("a1"), human("h1"), ai("a2")], [H, ai("b1"), human("h2"), ai("b2")])
    assert ids(merged) == "h a1 h1 a2 b1 h2 b2"
    assert not conflicts


def test_what_stands_before_and_between_keeps_its_place() -> None:
    base = [human("1"), human("2"), human("3")]
    merged, conflicts = merge(
        base, [S, human("1"), ai("a"), human("2"), human("3")], [human("1"), human("2"), ai("b"), human("3")]
    )
    assert ids(merged) == "s 1 a 2 b 3"
    assert not conflicts


def test_deletions_of_either_side_are_honoured() -> None:
    base = [human(str(n)) for n in range(6)]
    merged, conflicts = merge(base, [*base[2:], ai("a")], [*base[:5], ai("b")])
    assert ids(merged) == "2 3 4 a b"
    assert not conflicts


def test_a_summary_replaces_what_it_summarised() -> None:
    base = [human("1"), ai("2"), human("3"), ai("4")]
    merged, conflicts = merge(
        base, [SystemMessage("summary", id="sum"), ai("4")], [*base, human("5"), ai("6")]
    )
    assert ids(merged) == "sum 4 5 6"
    assert not conflicts


def test_an_edit_of_one_side_is_taken() -> None:
    merged, conflicts = merge([H, ai("a")], [H, ai("a"), human("n")], [human("h", "edited"), ai("a")])
    assert [m.content for m in merged] == ["edited", "", "q"]
    assert not conflicts


def test_edits_of_different_fields_are_both_taken() -> None:
    base = AIMessage("draft", id="a", response_metadata={"model": "m"})
    ours = AIMessage("final", id="a", response_metadata={"model": "m"})
    theirs = AIMessage("draft", id="a", name="bob", response_metadata={"model": "m", "rated": 5})
    (merged,), conflicts = merge([base], [ours], [theirs])
    assert merged == AIMessage("final", id="a", name="bob", response_metadata={"model": "m", "rated": 5})
    assert type(merged) is AIMessage
    assert not conflicts


def test_edits_of_one_field_conflict_there() -> None:
    (merged,), (conflict,) = merge([human("h", "b")], [human("h", "o")], [human("h", "t")])
    assert merged.content == "o"
    assert (conflict.path, conflict.kind) == (("m", "h", "content"), "edit/edit")
    values, left = resolve({"m": [merged, ai("a")]}, [conflict], {"m.h.content": "theirs"})
    assert ([m.content for m in values["m"]], left) == (["t", ""], ())
    assert merged.content == "o"


@pytest.mark.parametrize("ours_deletes", [True, False])
def test_edit_and_delete_conflict_and_can_be_resolved_in_place(ours_deletes: bool) -> None:
    base = [human("1"), human("2", "b"), human("3")]
    deleted, edited = [base[0], base[2]], [base[0], human("2", "e"), base[2]]
    ours, theirs = (deleted, edited) if ours_deletes else (edited, deleted)
    merged, (conflict,) = merge(base, ours, theirs)
    assert ids(merged) == ids(ours)
    assert (conflict.path, conflict.kind) == (("m", "2"), "edit/delete")
    values, _ = resolve({"m": [*merged, ai("later")]}, [conflict], {0: "theirs"})
    assert ids(values["m"]) == f"{ids(theirs)} later"


def test_moved_items_take_the_side_that_moved_them() -> None:
    base = [human("1"), human("2"), human("3")]
    moved = [human("3"), human("1"), human("2")]
    assert ids(merge(base, [*base, ai("a")], moved)[0]) == "3 a 1 2"
    assert ids(merge(base, moved, [*base, ai("a")])[0]) == "3 a 1 2"


def test_two_orders_conflict_and_can_be_resolved() -> None:
    base = [human("1"), human("2"), human("3")]
    ours, theirs = [base[2], base[0], base[1], ai("a")], [base[1], base[0], base[2]]
    merged, (conflict,) = merge(base, ours, theirs)
    assert ids(merged) == "3 1 2 a"
    assert (conflict.kind, conflict.path, conflict.theirs) == ("order", ("m",), ["2", "1", "3"])
    values, _ = resolve({"m": merged}, [conflict], {("m",): "theirs"})
    assert ids(values["m"]) == "2 a 1 3"
    assert ids(merge(base, ours, theirs, policy="secondary_wins")[0]) == "2 a 1 3"


def test_results_of_parallel_calls_stand_behind_their_calls() -> None:
    base = [H, ai("c", "x", "y")]
    merged, conflicts = merge(base, [*base, result("rx", "x"), ai("a")], [*base, result("ry", "y"), ai("b")])
    assert ids(merged) == "h c rx ry a b"
    assert not conflicts


def test_a_result_moves_up_over_what_the_other_side_said() -> None:
    base = [H, ai("c", "x")]
    merged, conflicts = merge(base, [*base, human("h2")], [*base, result("rx", "x"), ai("b")])
    assert ids(merged) == "h c rx h2 b"
    assert not conflicts


def test_two_results_of_one_call_are_one_conflict() -> None:
    base = [H, ai("c", "x")]
    merged, (conflict,) = merge(
        base, [*base, result("r1", "x", "ours"), ai("a")], [*base, result("r2", "x", "theirs"), ai("b")]
    )
    assert ids(merged) == "h c r1 a b"
    assert (conflict.kind, conflict.ours.id, conflict.theirs.id) == ("add/add", "r1", "r2")
    values, _ = resolve({"m": merged}, [conflict], {0: "theirs"})
    assert ids(values["m"]) == "h c r2 a b"


def test_a_call_deleted_by_theirs_and_answered_by_ours_stays() -> None:
    base = [H, ai("c", "x")]
    merged, conflicts = merge(base, [*base, result("r", "x")], [H, human("h2")])
    assert ids(merged) == "h c r h2"
    assert [(c.kind, c.path[-1]) for c in conflicts] == [("edit/delete", "c"), ("edit/delete", "r")]
    values, _ = resolve({"m": merged}, conflicts, {0: "theirs", 1: "theirs"})
    assert ids(values["m"]) == "h h2"


def test_a_call_deleted_by_ours_and_answered_by_theirs_stays_deleted() -> None:
    base = [H, ai("c", "x")]
    merged, conflicts = merge(base, [H, human("h2")], [*base, result("r", "x"), ai("b")])
    assert ids(merged) == "h h2 b"
    assert [(c.kind, c.path[-1]) for c in conflicts] == [("edit/delete", "c"), ("edit/delete", "r")]
    values, left = resolve({"m": merged}, conflicts, {0: "theirs", 1: "theirs"})
    assert ids(values["m"]) == "h c r h2 b"
    assert not left
    assert (
        ids(merge(base, [H, human("h2")], [*base, result("r", "x")], policy="secondary_wins")[0])
        == "h h2 c r"
    )


def test_a_call_edited_away_by_theirs_and_answered_by_ours_stays() -> None:
    base = [H, ai("c", "x", "y")]
    merged, conflicts = merge(base, [*base, result("r", "x")], [H, ai("c", "y")])
    assert [len(getattr(m, "tool_calls", ())) for m in merged] == [0, 2, 0]
    assert [(c.kind, c.path[-1]) for c in conflicts] == [("edit/edit", "c"), ("edit/delete", "r")]


def test_an_edited_call_that_theirs_trimmed_keeps_its_results() -> None:
    base = [H, ai("c", "x"), result("r", "x"), ai("a")]
    merged, conflicts = merge(base, [H, ai("c", "x", text="edited"), *base[2:]], [ai("a"), human("n")])
    assert ids(merged) == "c r a n"
    assert [(c.kind, c.path[-1]) for c in conflicts] == [("edit/delete", "c"), ("edit/delete", "r")]


def test_messages_without_ids_are_known_by_their_content() -> None:
    base = [HumanMessage("a"), HumanMessage("a")]
    merged, conflicts = merge(base, [*base, HumanMessage("b")], [*base, HumanMessage("a"), AIMessage("b")])
    assert [(m.type, m.content) for m in merged] == [
        ("human", "a"), ("human", "a"), ("human", "b"), ("human", "a"), ("ai", "b"),
    ]  # fmt: skip
    assert not conflicts


def test_dicts_with_ids_are_items_too() -> None:
    base = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    ours = [{"id": 1, "text": "A"}, {"id": 2, "text": "b"}, {"id": 3}]
    theirs = [{"id": 1, "text": "a", "done": True}, {"id": 4}]
    merged, conflicts = merge(base, ours, theirs)
    assert merged == [{"id": 1, "text": "A", "done": True}, {"id": 3}, {"id": 4}]
    assert not conflicts


def test_messages_of_the_chat_format_keep_results_behind_calls() -> None:
    base = [{"id": "h", "role": "user"}, {"id": "c", "role": "assistant", "tool_calls": [{"id": "x"}]}]
    answered = [*base, {"id": "r", "role": "tool", "tool_call_id": "x"}]
    merged, conflicts = merge(base, [*base, {"id": "n", "role": "user"}], answered)
    assert [message["id"] for message in merged] == ["h", "c", "r", "n"]
    assert not conflicts


def test_a_type_change_is_not_taken_apart() -> None:
    (merged,), (conflict,) = merge([human("1", "b")], [ai("1", text="o")], [human("1", "t")])
    assert (merged.type, conflict.path) == ("ai", ("m", "1"))


# --- properties

TEXTS = st.sampled_from(["", "x", "y"])


@st.composite
def conversations(draw: st.DrawFn, prefix: str) -> list[BaseMessage]:
    """Turns of a run: questions, answers, and calls with all their results right behind them."""
    messages: list[BaseMessage] = []
    for turn in range(draw(st.integers(0, 4))):
        messages.append(human(f"{prefix}h{turn}", draw(TEXTS)))
        calls = [f"{prefix}{turn}-{n}" for n in range(draw(st.integers(0, 2)))]
        messages.append(ai(f"{prefix}a{turn}", *calls, text=draw(TEXTS)))
        messages += [result(f"{prefix}r{call}", call) for call in calls]
    return messages


@st.composite
def edited(draw: st.DrawFn, base: list[BaseMessage], prefix: str) -> list[BaseMessage]:
    """The base with turns deleted and messages edited, and more turns behind it."""
    gone = set(draw(st.lists(st.integers(0, 3), max_size=2)))
    kept = [m for m in base if int(next(filter(str.isdigit, m.id or ""))) not in gone]
    changed = [
        m.model_copy(update={"content": draw(TEXTS) + prefix}) if draw(st.integers(0, 5)) == 0 else m
        for m in kept
    ]
    return [*changed, *draw(conversations(prefix))]


@st.composite
def three_sides(draw: st.DrawFn) -> tuple[list[Any], list[Any], list[Any]]:
    base = draw(conversations("b"))
    return base, draw(edited(base, "o")), draw(edited(base, "t"))


def in_order(ids: list[str], of: list[str]) -> bool:
    """True if both orders put what they share the same way."""
    shared = set(ids) & set(of)
    return [i for i in ids if i in shared] == [i for i in of if i in shared]


@settings(deadline=None)
@given(three_sides())
def test_none_lost_none_twice_each_side_in_order_results_behind_calls(sides: Any) -> None:
    base, ours, theirs = sides
    stored = [SafeSerializer().dumps_typed(side) for side in sides]
    merged, conflicts = merge(base, ours, theirs)
    found, known = [m.id for m in merged], {m.id for m in base}
    one, other = [m.id for m in ours], [m.id for m in theirs]
    assert len(found) == len(set(found))
    disputed = {c.path[1] for c in conflicts if len(c.path) > 1}
    for id_ in {*one, *other}:
        deleted = id_ in known and not (id_ in one and id_ in other)
        assert deleted or id_ in found or id_ in disputed
    assert set(found) <= {*one, *other}
    assert in_order(found, one)
    assert in_order(found, other)
    open_calls: set[str] = set()
    for message in merged:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in open_calls
        else:
            open_calls = {call["id"] for call in getattr(message, "tool_calls", ())}
    assert [SafeSerializer().dumps_typed(side) for side in sides] == stored


@settings(deadline=None)
@given(three_sides())
def test_swapped_sides_give_the_same_messages_and_mirrored_conflicts(sides: Any) -> None:
    base, ours, theirs = sides
    one, _ = merge(base, ours, theirs, policy="primary_wins")
    other, _ = merge(base, theirs, ours, policy="secondary_wins")
    assert sorted(one, key=lambda m: m.id) == sorted(other, key=lambda m: m.id)
    _, first = merge(base, ours, theirs)
    _, second = merge(base, theirs, ours)
    mirrored = [(c.path, c.kind, c.base, c.theirs, c.ours) for c in second]
    assert sorted(map(repr, [(c.path, c.kind, c.base, c.ours, c.theirs) for c in first])) == sorted(
        map(repr, mirrored)
    )


def test_two_branches_of_a_thousand_messages_merge_in_milliseconds() -> None:
    def conversation(prefix: str, count: int) -> list[BaseMessage]:
        return [
            human(f"{prefix}{n}", f"question {n} " * 20)
            if n % 2
            else ai(f"{prefix}{n}", text=f"answer {n} " * 20)
            for n in range(count)
        ]

    common = conversation("c", 500)
    ours, theirs = [*common, *conversation("o", 500)], [*common, *conversation("t", 500)]
    serializer = SafeSerializer()
    sides = [serializer.loads_typed(serializer.dumps_typed(side)) for side in (common, ours, theirs)]
    took = []
    for _ in range(5):
        start = time.process_time()
        merged, conflicts = merge(*sides)
        took.append(time.process_time() - start)
    assert len(merged) == 1500
    assert not conflicts
    assert min(took) < 0.1
