"""How many round trips reads and writes take."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence.checkpointer import Checkpointer
from tests.builders import RoundTrips, store, thread, values_of


def test_round_trip_budgets(saver: Checkpointer, new_saver: Any, round_trips: RoundTrips) -> None:
    messages = [HumanMessage(f"m{i} " + "x" * 300, id=f"m{i}") for i in range(100)]
    config = store(saver, {"messages": messages})
    assert round_trips.of(lambda: store(saver, {"messages": [*messages, HumanMessage("next")]}, config)) == 1
    assert round_trips.of(lambda: saver.put_writes(config, [("messages", [AIMessage("y" * 300)])], "t")) == 1
    assert round_trips.of(lambda: saver.get_tuple(thread())) == 1
    cold = new_saver()
    assert round_trips.of(lambda: cold.get_tuple(thread())) == 2
    assert round_trips.of(lambda: cold.put_writes(config, [("messages", [AIMessage("y" * 300)])], "t")) == 1
    assert round_trips.of(lambda: store(new_saver(), {"messages": messages}, thread("new"))) == 1
    assert round_trips.of(lambda: list(new_saver().list(thread(), limit=10))) == 2


def test_round_trips_of_delta_history(saver: Checkpointer, new_saver: Any, round_trips: RoundTrips) -> None:
    config = store(
        saver, {"messages": _DeltaSnapshot([HumanMessage(f"m{i} " + "x" * 99) for i in range(50)])}
    )
    for i in range(60):
        saver.put_writes(config, [("messages", [HumanMessage(f"w{i} " + "x" * 99)])], "task")
        config = store(saver, {"other": i}, config)
    history: dict[str, Any] = {}

    def read(reader: Checkpointer) -> None:
        history.update(reader.get_delta_channel_history(config=thread(), channels=["messages"]))

    assert round_trips.of(lambda: read(new_saver())) == 2
    assert len(history["messages"]["seed"].value) == 50
    assert [w[2][0].content.split()[0] for w in history["messages"]["writes"]] == [f"w{i}" for i in range(60)]
    saver.get_tuple(thread())
    assert round_trips.of(lambda: read(saver)) == 1


def test_fragmented_lists_read_in_two_round_trips(
    saver: Checkpointer, new_saver: Any, round_trips: RoundTrips
) -> None:
    messages = [HumanMessage(f"m{i} " + "x" * 100, id=f"m{i}") for i in range(300)]
    config = store(saver, {"messages": messages})
    for i in range(0, 300, 2):
        messages[i] = HumanMessage(f"edited {i} " + "x" * 100, id=f"m{i}")
        config = store(saver, {"messages": messages}, config)
    cold = new_saver()
    assert round_trips.of(lambda: cold.get_tuple(thread())) == 2
    assert values_of(cold)["messages"] == messages
