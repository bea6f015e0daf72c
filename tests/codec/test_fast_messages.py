"""Messages are built without validation only where that changes nothing at all."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from haive_persistence.codec import SafeSerializer, fast_messages
from tests.codec.same import same
from tests.codec.strategies import json_values, plain_dicts, text

OURS, THEIRS = SafeSerializer(), JsonPlusSerializer()
CLASSES = (HumanMessage, SystemMessage, AIMessage, ToolMessage)


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two messages cannot be told apart, hidden fields and order of fields included."""
    if not isinstance(theirs, BaseMessage):
        return same(ours, theirs)
    return (
        same(ours, theirs)
        and list(ours.__dict__) == list(theirs.__dict__)
        and ours.__pydantic_fields_set__ == theirs.__pydantic_fields_set__
        and type(ours.__pydantic_fields_set__) is set
        and ours.__pydantic_private__ == theirs.__pydantic_private__
        and ours == theirs
        and repr(ours) == repr(theirs)
    )


def read_alike(data: bytes) -> bool:
    return alike(OURS.loads_typed(("msgpack", data)), THEIRS.loads_typed(("msgpack", data)))


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    if "caplog" not in request.node.function.__code__.co_varnames:
        caplog.set_level(logging.CRITICAL)


def test_the_fast_way_is_taken_with_the_installed_langchain() -> None:
    """If this fails, LangChain has changed: compare its classes with `_SHAPES` and the functions."""
    for cls, build in fast_messages._BUILD.items():
        assert fast_messages._reason(cls, build) is None, cls
    assert {name for _, name in fast_messages.BUILDERS} == {cls.__name__ for cls in CLASSES}


# --- messages as providers and users make them ------------------------------------------------

optional_text = st.one_of(st.none(), text)
blocks = st.one_of(
    text,
    st.fixed_dictionaries({"type": st.just("text"), "text": text}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": text, "input": plain_dicts, "name": text}),
    plain_dicts,
)
contents = st.one_of(text, st.lists(blocks, max_size=3))
call_dicts = st.fixed_dictionaries(
    {"name": text, "args": plain_dicts, "id": optional_text}, optional={"type": st.just("tool_call")}
)
invalid_calls = st.fixed_dictionaries(
    {"name": optional_text, "args": optional_text, "id": optional_text, "error": optional_text}
)
counts = st.integers(0, 2**40)
usages = st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts, "total_tokens": counts},
    optional={
        "input_token_details": st.dictionaries(
            st.sampled_from(["audio", "cache_read", "cache_creation", "other"]), counts
        ),
        "output_token_details": st.dictionaries(st.sampled_from(["audio", "reasoning", "other"]), counts),
    },
)
raw_call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
kwargs = st.one_of(plain_dicts, st.just({"tool_calls": [raw_call]}), st.just({"refusal": None}))
common = {
    "additional_kwargs": kwargs,
    "response_metadata": plain_dicts,
    "name": optional_text,
    "id": optional_text,
}
extras = st.dictionaries(
    st.sampled_from(["example", "custom", "cache", "reasoning"]), json_values, max_size=1
)

any_message = st.one_of(
    st.builds(lambda more, **fields: HumanMessage(**fields, **more), extras, content=contents, **common),
    st.builds(SystemMessage, content=contents, **common),
    st.builds(
        lambda more, **fields: AIMessage(**fields, **more),
        extras,
        content=contents,
        tool_calls=st.lists(call_dicts, max_size=2),
        invalid_tool_calls=st.lists(invalid_calls, max_size=1),
        usage_metadata=st.one_of(st.none(), usages),
        **common,
    ),
    st.builds(
        ToolMessage,
        content=contents,
        tool_call_id=text,
        artifact=json_values,
        status=st.sampled_from(["success", "error"]),
        **common,
    ),
)


@given(st.lists(any_message, max_size=3))
def test_messages_are_what_langgraph_reads(value: list[BaseMessage]) -> None:
    written = OURS.dumps_typed(value)
    if all(fast_messages.ORDINARY[type(message)](message.model_dump()) for message in value):
        assert written == THEIRS.dumps_typed(value)
    ours, theirs = OURS.loads_typed(written), THEIRS.loads_typed(written)
    assert all(alike(one, other) for one, other in zip(ours, theirs, strict=True))
    assert ours == value


# --- stored fields of any shape ---------------------------------------------------------------

odd = st.one_of(
    json_values,
    st.sampled_from(
        ["human", "ai", "tool", "system", "success", "tool_call", "", [], {}, [""], [{}], True, 1.0, "1"]
    ),
    st.lists(st.one_of(call_dicts, invalid_calls, plain_dicts), max_size=2),
    usages,
    contents,
)


@st.composite
def stored_fields(draw: st.DrawFn) -> bytes:
    """The stored form of a message, with some fields changed, missing, added or out of order."""
    message = draw(any_message)
    fields = message.model_dump()
    for name in draw(
        st.lists(st.sampled_from([*fields, "tool_call_chunks", "content_blocks", "extra"]), max_size=2)
    ):
        fields[name] = draw(odd)
    for name in draw(st.lists(st.sampled_from(list(fields)), max_size=1)):
        fields.pop(name, None)
    if draw(st.integers(0, 5)) == 0:
        fields = dict(draw(st.permutations(list(fields.items()))))
    calls = fields.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and draw(st.integers(0, 3)) == 0:
            call[draw(st.sampled_from(["name", "args", "id", "type", "extras", "index"]))] = draw(odd)
    cls = draw(st.sampled_from(CLASSES))
    parts = (cls.__module__, cls.__name__, fields, "model_validate_json")
    return ormsgpack.packb(ormsgpack.Ext(5, ormsgpack.packb(parts, option=ormsgpack.OPT_NON_STR_KEYS)))


@given(stored_fields())
@settings(max_examples=400)
def test_odd_fields_are_read_as_langgraph_reads_them(data: bytes) -> None:
    try:
        THEIRS.loads_typed(("msgpack", data))
    except Exception:
        return
    assert read_alike(data)


def test_messages_share_nothing() -> None:
    data = OURS.dumps_typed([HumanMessage("a"), HumanMessage("a")])
    one, other = OURS.loads_typed(data)
    one.additional_kwargs["x"] = 1
    one.__pydantic_fields_set__.add("new")
    one.custom = 1
    assert other == HumanMessage("a")
    assert OURS.loads_typed(data)[0].__pydantic_fields_set__ == set(HumanMessage.model_fields)


def test_built_messages_work_like_any_other() -> None:
    message = OURS.loads_typed(OURS.dumps_typed(AIMessage("x", id="1")))
    assert message.model_copy(update={"content": "y"}).content == "y"
    assert message.model_dump() == AIMessage("x", id="1").model_dump()
    message.content = "z"
    assert message.text == "z"
    assert gc.is_tracked(message.__dict__) or message.__dict__


KEY = (HumanMessage.__module__, "HumanMessage")


@pytest.fixture
def unproven() -> Iterator[None]:
    """HumanMessage as in a process that has read none."""
    before = dict(fast_messages.BUILDERS)
    fast_messages.BUILDERS[KEY] = fast_messages._prove_first(KEY, HumanMessage, fast_messages._human)
    yield
    fast_messages.BUILDERS.update(before)


def _change_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        fast_messages._SHAPES, HumanMessage, ({**fast_messages._COMMON, "type": "other"}, set())
    )


def _change_validators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        fast_messages._SHAPES, HumanMessage, (fast_messages._SHAPES[HumanMessage][0], {"new"})
    )


def _change_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HumanMessage, "model_config", {"extra": "ignore"})


def _change_init(monkeypatch: pytest.MonkeyPatch) -> None:
    init = HumanMessage.__init__

    def changed(self: Any, **fields: Any) -> None:
        init(self, **{**fields, "name": fields["name"] or "user"})

    monkeypatch.setattr(HumanMessage, "__init__", changed)


def _refuse_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Any, **fields: Any) -> None:
        raise ValueError(fields)

    monkeypatch.setattr(HumanMessage, "__init__", changed)


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_change_fields, "its fields changed"),
        (_change_validators, "its model validators changed"),
        (_change_config, "its model_config changed"),
        (_change_init, "its validation changed"),
        (_refuse_all, "could not be compared"),
    ],
)
def test_a_class_of_another_structure_is_validated(
    change: Callable[[pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = OURS.dumps_typed([HumanMessage("a", name="n"), HumanMessage("b", name="n")])
    with monkeypatch.context() as context:
        change(context)
        read = OURS.loads_typed(data)
    if change is not _refuse_all:
        assert [message.content for message in read] == ["a", "b"]
    assert KEY not in fast_messages.BUILDERS
    slow = [record.message for record in caplog.records if "validation, which takes" in record.message]
    assert len(slow) == 1
    assert reason in slow[0]


@pytest.mark.usefixtures("unproven")
def test_a_class_is_proven_once() -> None:
    data = OURS.dumps_typed(HumanMessage("a"))
    assert OURS.loads_typed(data) == HumanMessage("a")
    assert fast_messages.BUILDERS[KEY] is fast_messages._human
