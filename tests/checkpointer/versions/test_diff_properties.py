"""A diff finds every difference and nothing else, and as a patch makes one state the other."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import hypothesis.strategies as st
import jsonpatch
import pytest
from hypothesis import given, settings
from langchain_core.messages import HumanMessage

from haive_persistence.checkpointer.versions.diff import (
    Diff,
    TokenList,
    TokenState,
    compare_states,
    positions_to_decode,
    state_json,
)
from haive_persistence.checkpointer.versions.diff.sequences import longest_increasing, matching_blocks
from haive_persistence.checkpointer.versions.diff.text import word_edits
from tests.checkpointer.versions.diff_values import lists, states, strictly_equal, texts


def as_text(form: Any) -> str:
    """JSON as text: 1, 1.0 and true are different there."""
    return json.dumps(form, sort_keys=True)


def check(before: dict[str, Any], after: dict[str, Any]) -> Diff:
    """What holds of every two states."""
    diff = compare_states(before, after)
    differ = not all(
        channel in after and channel in before and strictly_equal(before[channel], after[channel])
        for channel in {*before, *after}
    )
    assert bool(diff) is differ
    patched = jsonpatch.apply_patch(state_json(before), diff.to_json_patch())
    assert as_text(patched) == as_text(state_json(after))
    brief = compare_states(before, after, include_details=False)
    assert brief.summary == diff.summary
    assert brief.changes == ()
    assert bool(diff.changes) is differ
    assert json.loads(json.dumps(diff.to_dict())) == json.loads(as_text(diff.to_dict()))
    assert bool(diff) is (diff.to_text() != "no differences")
    diff._repr_html_().encode()
    diff.to_text(width=40).encode()
    return diff


@given(states, states)
@settings(max_examples=150, deadline=None)
def test_every_difference_is_found_and_the_patch_makes_it(before: Any, after: Any) -> None:
    check(before, after)


@given(lists, lists)
@settings(max_examples=200, deadline=None)
def test_lists(before: Any, after: Any) -> None:
    check({"messages": before}, {"messages": after})


@given(states)
@settings(max_examples=150, deadline=None)
def test_a_state_and_its_copy_do_not_differ(state: Any) -> None:
    assert not check(state, copy.deepcopy(state))
    assert not compare_states(state, state)


@given(st.permutations(range(7)), st.permutations(range(7)), st.integers(0, 7), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_the_fewest_messages_are_moved(one: list[int], two: list[int], cut: int, cut_two: int) -> None:
    before, after = one[:cut], two[:cut_two]
    diff = check(*({"messages": [HumanMessage(str(n), id=str(n)) for n in ids]} for ids in (before, after)))
    common = [n for n in before if n in after]
    order = [after.index(n) for n in common]
    longest = [1] * len(order)
    for n in range(len(order)):
        longest[n] = 1 + max((longest[m] for m in range(n) if order[m] < order[n]), default=0)
    found = diff.summary.get("messages")
    assert (found.moved if found else 0) == len(order) - max(longest, default=0)
    assert (found.changed if found else 0) == 0
    assert (found.added if found else 0) == len(set(after) - set(before))


@given(lists, lists, st.data())
@settings(max_examples=150, deadline=None)
def test_tokens_change_nothing_but_what_is_decoded(before: Any, after: Any, data: st.DataObject) -> None:
    """Equal elements have equal tokens, or some of them have not."""
    contents: list[Any] = []
    is_exact = data.draw(st.booleans())

    def token(value: Any) -> int:
        equal = [n for n, known in enumerate(contents) if strictly_equal(known, value)]
        contents.append(value)
        own = len(contents) - 1
        return equal[0] if equal and is_exact else data.draw(st.sampled_from([own, *equal]))

    tokens, others = [token(v) for v in before], [token(v) for v in after]
    mine = TokenList(tokens, before.__getitem__)
    theirs = TokenList(others, after.__getitem__)
    diff = compare_states({"messages": mine}, {"messages": theirs})
    here, there = positions_to_decode(tokens, others)
    if is_exact:
        assert set(mine._loaded) <= set(here)
        assert set(theirs._loaded) <= set(there)
    assert bool(diff) is not strictly_equal(before, after)
    patched = jsonpatch.apply_patch(state_json({"messages": before}), diff.to_json_patch())
    assert as_text(patched) == as_text(state_json({"messages": after}))
    assert as_text(state_json({"messages": mine})) == as_text(state_json({"messages": before}))


def test_a_channel_of_equal_token_is_not_decoded() -> None:
    before = TokenState({"a": 1, "b": 2, "old": 5}, {"a": "x", "b": "y", "old": 0}.__getitem__)
    after = TokenState({"a": 1, "b": 3, "new": 6}, {"a": "x", "b": "z", "new": 0}.__getitem__)
    diff = compare_states(before, after)
    assert {name: one.kind for name, one in diff.summary.items()} == {
        "b": "changed",
        "old": "removed",
        "new": "added",
    }
    assert before.decoded == after.decoded == 2


def test_only_what_differs_is_decoded() -> None:
    messages = [HumanMessage(f"message {n}", id=str(n)) for n in range(2000)]
    edited = HumanMessage("message 1000, edited", id="1000")
    before = TokenList(range(2000), messages.__getitem__)
    changed = [*messages[:1000], edited, *messages[1001:]]
    after = TokenList([*range(1000), -1, *range(1001, 2000)], changed.__getitem__)
    (change,) = compare_states({"messages": before}, {"messages": after}).changes
    assert change.path == ("messages", 1000, "content")
    assert before.decoded == after.decoded == 1


@given(st.lists(st.integers(0, 20), max_size=15))
def test_longest_increasing_subsequence(values: list[int]) -> None:
    found = [values[n] for n in longest_increasing(values)]
    assert found == sorted(set(found))
    lengths: list[int] = []
    for n, value in enumerate(values):
        lengths.append(1 + max((lengths[m] for m in range(n) if values[m] < value), default=0))
    assert len(found) == max(lengths, default=0)


@given(st.lists(st.integers(0, 5), max_size=20), st.lists(st.integers(0, 5), max_size=20))
@settings(max_examples=300)
def test_matching_blocks_are_equal_and_in_order(before: list[int], after: list[int]) -> None:
    i = j = 0
    for at, other, size in matching_blocks(before, after):
        assert at >= i
        assert other >= j
        assert size
        assert before[at : at + size] == after[other : other + size]
        i, j = at + size, other + size


@given(texts, texts)
@settings(max_examples=300)
def test_the_edits_of_a_text_make_the_other(before: str, after: str) -> None:
    at, made = 0, ""
    for edit in word_edits(before, after):
        made += before[at : edit.start_before] + after[edit.start_after : edit.end_after]
        assert edit.start_before >= at
        at = edit.end_before
    assert made + before[at:] == after


def steps(function: Any) -> int:
    """The lines of Python that a call executes: independent of the machine's speed."""
    import sys

    count = 0

    def trace(*_: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(outer)
    return count


@pytest.mark.parametrize("kind", ["messages", "texts", "numbers", "few numbers", "words", "few words"])
def test_work_grows_with_the_size_of_what_differs(kind: str) -> None:
    """Twice as much that differs wholly takes about twice the steps, not four times."""
    source = random.Random(1)

    def made(size: int) -> Any:
        match kind:
            case "messages":
                return [HumanMessage(str(source.random()), id=str(source.random())) for _ in range(size)]
            case "texts":
                return [f"{source.random()} {source.random()}" for _ in range(size)]
            case "numbers":
                return [source.random() for _ in range(size)]
            case "few numbers":
                return [source.randrange(3) for _ in range(size)]
            case "words":
                return " ".join(str(source.random()) for _ in range(size))
            case _:
                return " ".join(source.choices("ab", k=size))

    def work(size: int) -> int:
        before, after = {"x": made(size)}, {"x": made(size)}
        return steps(lambda: compare_states(before, after))

    assert work(1000) < 2.6 * work(500)
