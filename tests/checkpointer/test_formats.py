"""Rows written by every format there has been are read by this version.

    python -m tests.checkpointer.test_formats DSN     writes the fixture of the current format anew

A fixture is never changed once its format has been released; a new format gets a new one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ormsgpack
import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send

from haive_persistence import errors
from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.codec import Codec
from haive_persistence.db import Database

FIXTURES = Path(__file__).parent / "fixtures"
TENANTS = {"fixture": None, "fixture-sealed": bytes(range(32))}
TABLES = ("thread", "piece", "checkpoint", "pending_write", "data_key")
CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
TASK = "33333333-3333-4333-8333-333333333333"
SUBGRAPH: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": f"worker:{TASK}"}}


def conversation(length: int) -> list[Any]:
    call = {"name": "search", "args": {"query": "ü\x00"}, "id": "c1", "type": "tool_call"}
    kinds = [
        lambda i: HumanMessage(f"question {i} " + "words " * 30, id=f"00000000-0000-4000-8000-{i:012}"),
        lambda i: AIMessage("", id=f"run-{i}", tool_calls=[call], response_metadata={"model": "m"}),
        lambda i: ToolMessage(f"result {i} " + "words " * 10, tool_call_id="c1", id=f"tool-{i}"),
    ]
    return [kinds[i % 3](i) for i in range(length)]


def steps() -> list[dict[str, Any]]:
    """The channel values of five checkpoints: everything a manifest can say."""
    long = conversation(90)
    bare = HumanMessage("given its id later " * 10)
    edited = [m for i, m in enumerate(long) if i % 3]
    files = {f"src/file_{i}.py": f"# file {i}\n" + "code\n" * 60 for i in range(12)}
    return [
        {"messages": long[:2], "__start__": {"messages": [bare]}},
        {"messages": [*long, bare.model_copy(update={"id": "11111111-1111-4111-8111-111111111111"})], "n": 1},
        {"messages": edited, "files": files, "n": -(2**40), "note": None, "score": -0.0},
        {
            "messages": edited[10:],
            "files": {**files, "src/file_3.py": "changed"},
            "numbers": list(range(200)),
        },
        {
            "snapshot": _DeltaSnapshot(edited[:5]),
            "sends": [Send("worker", {"messages": edited[:3]})],
            "text": "ü\x00",
        },
    ]


def write(saver: Checkpointer) -> None:
    config = CONFIG
    for step, values in enumerate(steps()):
        config = put(saver, config, step, values, {})
    put(
        saver,
        SUBGRAPH,
        4,
        {"messages": steps()[0]["messages"]},
        {"": config["configurable"]["checkpoint_id"]},
    )
    saver.put_writes(config, [("messages", conversation(2)), ("branch:to:x", None)], "task-1", "~pull, x")
    saver.put_writes(config, [("n", 7)], TASK, "~__pregel_pull, worker")
    saver.put_writes(config, [("__interrupt__", "ask")], "22222222-2222-4222-8222-222222222222")


def put(saver: Checkpointer, config: Any, step: int, values: dict[str, Any], parents: dict[str, str]) -> Any:
    checkpoint: Any = {
        "v": 4,
        "id": f"1f1e537d-cb5{step}-613a-8000-5f4a9e8196aa" if step else "checkpoint-zero",
        "ts": f"2026-11-20T10:00:0{step}.123456+00:00",
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, step + 1),
        "versions_seen": {"node": dict.fromkeys(values, step)},
        "updated_channels": list(values),
    }
    metadata: Any = {"source": "loop", "step": step, "parents": parents, "run_id": "run", "user": "x" * 60}
    return saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])


def check(saver: Checkpointer) -> None:
    (inner,) = (t for t in saver.list({"configurable": {"thread_id": "t"}}) if t.metadata["parents"])
    assert inner.config["configurable"]["checkpoint_ns"] == SUBGRAPH["configurable"]["checkpoint_ns"]
    assert inner.metadata["parents"] == {"": "1f1e537d-cb54-613a-8000-5f4a9e8196aa"}
    assert inner.checkpoint["channel_values"] == {"messages": steps()[0]["messages"]}
    found = list(saver.list(CONFIG))
    found.sort(key=lambda t: t.metadata["step"])
    assert [t.checkpoint["channel_values"] for t in found] == steps()
    assert [t.checkpoint["ts"][17:19] for t in found] == ["00", "01", "02", "03", "04"]
    assert found[4].metadata["user"] == "x" * 60  # type: ignore[typeddict-item]
    assert found[4].parent_config == found[3].config
    assert found[4].pending_writes == [
        ("22222222-2222-4222-8222-222222222222", "__interrupt__", "ask"),
        (TASK, "n", 7),
        ("task-1", "messages", conversation(2)),
        ("task-1", "branch:to:x", None),
    ]


def saver_for(database: Database, tenant: str) -> Checkpointer:
    config = CheckpointConfig(encryption_key=TENANTS[tenant])
    return Checkpointer(database.for_tenant(tenant), config=config)


@pytest.mark.parametrize("fixture", sorted(FIXTURES.glob("format-*.json")), ids=lambda p: p.stem)
def test_every_format_is_read_and_written_on(fixture: Path, database: Database, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        for table, rows in json.loads(fixture.read_text()).items():
            conn.execute(f"DELETE FROM haive.{table} WHERE tenant_id LIKE 'fixture%'")  # type: ignore[arg-type]
            columns = ", ".join(rows[0])
            conn.execute(
                f"INSERT INTO haive.{table} ({columns}) SELECT {columns} "  # type: ignore[arg-type]
                f"FROM jsonb_populate_recordset(NULL::haive.{table}, %s::jsonb)",
                (json.dumps(rows),),
            )
    for tenant in TENANTS:
        check(saver_for(database, tenant))
        writer = saver_for(database, tenant)
        latest = writer.get_tuple(CONFIG)
        assert latest is not None
        writer.put(latest.config, {**latest.checkpoint, "id": "1f1e537d-cb60-613a-8000-5f4a9e8196aa"}, {}, {})
        writer.prune(["t"])
        again = saver_for(database, tenant).get_tuple(CONFIG)
        assert again is not None
        assert again.checkpoint["channel_values"] == latest.checkpoint["channel_values"]


def test_a_newer_format_is_said_to_be_newer(database: Database, dsn: str) -> None:
    saver = Checkpointer(database)
    write(saver)
    newer = Codec().pack(ormsgpack.packb([records.FORMAT + 1, "whatever"]), b"")
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE haive.checkpoint SET body = %s WHERE tenant_id = %s", (newer, database.tenant))
    with pytest.raises(errors.DecodeError, match="newer version"):
        Checkpointer(database).get_tuple(CONFIG)


def main(dsn: str) -> None:
    database = Database(dsn)
    for tenant in TENANTS:
        saver = saver_for(database, tenant)
        saver.delete_thread("t")
        write(saver)
        check(saver_for(database, tenant))
    with psycopg.connect(dsn) as conn:
        dump = {}
        for table in TABLES:
            query = f"SELECT jsonb_agg(to_jsonb(t)) FROM haive.{table} t WHERE tenant_id = ANY (%s)"
            dump[table] = conn.execute(query, (list(TENANTS),)).fetchone()[0]  # type: ignore[arg-type,index]
    database.close()
    target = FIXTURES / f"format-{records.FORMAT}.json"
    target.write_text(json.dumps(dump, indent=0, sort_keys=True) + "\n")
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1])
