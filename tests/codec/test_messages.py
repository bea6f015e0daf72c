"""Messages are built without validation only where that changes nothing at all."""

from __future__ import annotations

import gc
import importlib
import logging
from typing import Any

import langchain_core
import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from haive_persistence.codec import SafeSerializer, messages
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
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_the_fast_way_is_taken_with_the_tested_langchain() -> None:
    """If this fails, LangChain has changed: read its classes, then raise `_TESTED_BELOW`."""
    assert {name for _, name in messages.BUILDERS} == {cls.__name__ for cls in CLASSES}


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


def test_another_langchain_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langchain_core, "__version__", "99.0.0")
    try:
        assert importlib.reload(messages).BUILDERS == {}
    finally:
        monkeypatch.undo()
        importlib.reload(messages)


@pytest.mark.parametrize("change", ["fields", "validators", "config"])
def test_other_classes_go_the_ordinary_way(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages._fits(HumanMessage)
    if change == "fields":
        monkeypatch.setitem(messages._SHAPES, HumanMessage, ({**messages._COMMON, "type": "other"}, set()))
    elif change == "validators":
        monkeypatch.setitem(messages._SHAPES, HumanMessage, (messages._SHAPES[HumanMessage][0], {"new"}))
    else:
        monkeypatch.setattr(HumanMessage, "model_config", {"extra": "ignore"})
    assert not messages._fits(HumanMessage)
