"""What LangGraph itself puts into a thread keeps the form that LangGraph expects."""

from __future__ import annotations

from typing import TypedDict

import pytest
from langgraph.graph import START, StateGraph

from haive_persistence import Checkpointer
from haive_persistence.db import Database


class State(TypedDict, total=False):
    error: Exception


def test_a_tasks_error_is_text_and_an_exception_in_the_state_an_exception(database: Database) -> None:
    def node(state: State) -> State:
        raise ConnectionError("no route")

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph = builder.compile(checkpointer=Checkpointer(database))
    config = {"configurable": {"thread_id": "errors"}}
    with pytest.raises(ConnectionError):
        graph.invoke({"error": ValueError("x", 1)}, config)
    snapshot = graph.get_state(config)
    assert snapshot.tasks[0].error == "ConnectionError('no route')"
    assert repr(snapshot.values["error"]) == "ValueError('x', 1)"
    assert type(snapshot.values["error"]) is ValueError
