"""A tool-calling agent that is killed half-way and resumed by another process.

    make demo            (or: python examples/demo.py)

No network and no model: the "model" is a function that decides by rules which tool to call. Everything else
is real: LangGraph, the embedded Postgres, two processes, and a kill -9 between them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from haive_persistence import Checkpointer, PersistenceConfig

CONFIG: Any = {"configurable": {"thread_id": "invoice-4711"}}


def add_item(name: str, price: float) -> str:
    """Put an item on the invoice."""
    return f"{name}: {price:.2f}"


def send_invoice(to: str) -> str:
    """Send the invoice."""
    if os.environ.get("DEMO_DIES_HERE"):
        print("  … and the process is killed while the tool runs (kill -9)", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return f"sent to {to}"


def model(state: MessagesState) -> dict[str, list[AnyMessage]]:
    """Stands in for a language model: the last message decides what to do."""
    last = state["messages"][-1]
    if isinstance(last, ToolMessage):
        return {"messages": [AIMessage(f"Done: {last.content}.")]}
    word, _, rest = str(last.content).partition(" ")
    if word == "add":
        name, price = rest.rsplit(" ", 1)
        call = {"name": "add_item", "args": {"name": name, "price": float(price)}}
    else:
        call = {"name": "send_invoice", "args": {"to": rest}}
    call_id = f"call-{len(state['messages'])}"
    return {"messages": [AIMessage("", tool_calls=[{**call, "id": call_id, "type": "tool_call"}])]}


def build(data_dir: str) -> tuple[Any, Checkpointer]:
    builder = StateGraph(MessagesState)
    builder.add_node("model", model)
    builder.add_node("tools", ToolNode([add_item, send_invoice]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    saver = Checkpointer(PersistenceConfig(data_dir=data_dir))
    return builder.compile(checkpointer=saver), saver


def first(data_dir: str) -> None:
    graph, _ = build(data_dir)
    for text in ("add coffee 3.20", "add a long chair 180", "send bob@example.com"):
        print(f"user: {text}", flush=True)
        answer = graph.invoke({"messages": [HumanMessage(text)]}, CONFIG, durability="sync")
        print(f"agent: {answer['messages'][-1].content}", flush=True)


def second(data_dir: str) -> None:
    graph, saver = build(data_dir)
    with saver:
        state = graph.get_state(CONFIG)
        print(f"kept: {len(state.values['messages'])} messages; next to run: {state.next[0]!r}")
        answer = graph.invoke(None, CONFIG)  # None: go on where it stopped
        print(f"agent: {answer['messages'][-1].content}")
        print("\nthe thread's history, newest first")
        for snapshot in graph.get_state_history(CONFIG):
            messages = snapshot.values.get("messages", [])
            last = messages[-1] if messages else None
            said = (last.content or last.tool_calls[0]["name"] + "(…)") if last else ""
            print(f"  step {snapshot.metadata['step']:>2}  {len(messages):>2} messages  {said}")
        print("\nwhat it takes in Postgres")
        for table, rows, size in tables(saver):
            print(f"  {table:<14} {rows:>4} rows {size:>8,} bytes of payload")


def tables(saver: Checkpointer) -> list[tuple[str, int, int]]:
    columns = {"piece": "payload", "checkpoint": "body", "pending_write": "payload"}
    with saver.database.connect() as conn:
        query = "SELECT count(*), sum(octet_length({})) FROM haive.{}"
        return [
            (table, *conn.execute(query.format(column, table)).fetchone())
            for table, column in columns.items()
        ]


def main() -> None:
    if len(sys.argv) > 2:
        {"first": first, "second": second}[sys.argv[1]](sys.argv[2])
        return
    data_dir = tempfile.mkdtemp(prefix="haive-demo-")
    try:
        for name, dies in (("first", "1"), ("second", "")):
            print(f"\n--- the {name} process")
            command = [sys.executable, __file__, name, data_dir]
            done = subprocess.run(command, env={**os.environ, "DEMO_DIES_HERE": dies}, check=False)
            assert done.returncode == (-signal.SIGKILL if dies else 0), done.returncode
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
