"""Rows that somebody changed: errors of ours, and no other thread's checkpoints are hidden by them."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage

from haive_persistence import CheckpointConfig, errors
from haive_persistence.checkpointer import Checkpointer, DamagedCheckpoint
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.db import Database
from tests.builders import store, thread

CONFIGS = {"clear": CheckpointConfig(), "sealed": CheckpointConfig(encryption_key=bytes(range(32)))}
THREADS = ("a", "b", "c")
DAMAGES = {
    "body": "UPDATE haive.checkpoint SET body = '\\x0991a0' WHERE thread_key = %s",
    "write": "UPDATE haive.pending_write SET payload = set_byte(payload, 4, 77) WHERE thread_key = %s",
    "pieces": "DELETE FROM haive.piece WHERE thread_key = %s",
    "piece": "UPDATE haive.piece SET payload = set_byte(payload, 3, 200) WHERE thread_key = %s",
    "thread id": "UPDATE haive.thread SET thread_id = 'somebody else' WHERE thread_key = %s",
}


@pytest.fixture(params=CONFIGS)
def reader(request: Any, database: Database) -> Callable[[], Checkpointer]:
    """Makes savers that remember nothing, after one has filled three threads."""

    def make() -> Checkpointer:
        return Checkpointer(database, config=CONFIGS[request.param])

    for id_ in THREADS:
        values = {"messages": [HumanMessage("x" * 300, id=id_)], "of": id_}
        config = store(make(), values, thread(id_), user=f"user {id_}")
        make().put_writes(config, [("messages", [HumanMessage("y" * 300)])], "task")
    return make


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_thread_is_reported_in_its_place(
    reader: Callable[[], Checkpointer], database: Database, admin: psycopg.Connection[Any], damage: str
) -> None:
    admin.execute(DAMAGES[damage], (thread_key(database.tenant, "b"),))  # type: ignore[arg-type]
    found = list(reader().list(None))
    assert [type(t) is DamagedCheckpoint for t in found] == [False, True, False]
    assert [t.checkpoint["channel_values"]["of"] for t in (found[0], found[2])] == ["c", "a"]
    damaged = found[1]
    assert isinstance(damaged, DamagedCheckpoint)
    assert damaged.metadata == {"damaged": str(damaged.error)}
    for attribute in ("checkpoint", "pending_writes"):
        with pytest.raises(type(damaged.error)):
            getattr(damaged, attribute)
    if damage != "thread id":  # a thread is found by its key: the text is only what `list` shows
        assert damaged.config["configurable"]["thread_id"] == "b"
        for read in (lambda s: s.get_tuple(damaged.config), lambda s: list(s.list(thread("b")))):
            with pytest.raises(errors.CodecError):
                read(reader())


def test_damage_is_logged(
    reader: Callable[[], Checkpointer],
    database: Database,
    admin: psycopg.Connection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    admin.execute(DAMAGES["body"], (thread_key(database.tenant, "b"),))
    (damaged,) = (t for t in reader().list(None) if isinstance(t, DamagedCheckpoint))
    (logged,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    for part in (damaged.config["configurable"]["checkpoint_id"], "'b'", str(damaged.error)):
        assert part in logged.getMessage()


def test_pages_go_on_after_damage(
    reader: Callable[[], Checkpointer], database: Database, admin: psycopg.Connection[Any]
) -> None:
    admin.execute(DAMAGES["body"], (thread_key(database.tenant, "b"),))
    assert [t.config["configurable"]["thread_id"] for t in reader().list(None, limit=2)] == ["c", "b"]
    before: Any = next(iter(reader().list(thread("c")))).config
    assert [t.config["configurable"]["thread_id"] for t in reader().list(None, before=before)] == ["b", "a"]
    assert [t.metadata["user"] for t in reader().list(None, filter={"user": "user a"})] == ["user a"]


def test_swapped_thread_ids_swap_no_threads(
    reader: Callable[[], Checkpointer], database: Database, admin: psycopg.Connection[Any]
) -> None:
    admin.execute(
        "UPDATE haive.thread SET thread_id = CASE thread_id WHEN 'a' THEN 'b' ELSE 'a' END"
        " WHERE thread_id IN ('a', 'b') AND tenant_id = %s",
        (database.tenant,),
    )
    found = list(reader().list(None))
    assert [isinstance(t, DamagedCheckpoint) for t in found] == [False, True, True]
    assert all(isinstance(t.error, errors.TamperedError) for t in found[1:])  # type: ignore[attr-defined]
    assert reader().get_tuple(thread("a")).checkpoint["channel_values"]["of"] == "a"  # type: ignore[union-attr]


def test_a_missing_key_is_not_damage(database: Database) -> None:
    store(Checkpointer(database, config=CONFIGS["sealed"]), {"a": 1})
    for config in (CheckpointConfig(), CheckpointConfig(encryption_key=bytes(32))):
        with pytest.raises(errors.WrongKeyError):
            list(Checkpointer(database, config=config).list(None))


def test_missing_writes_of_a_delta_channel_are_an_error(
    database: Database, admin: psycopg.Connection[Any]
) -> None:
    saver = Checkpointer(database)
    first = store(saver, {"other": 1})
    saver.put_writes(first, [("messages", [HumanMessage("x" * 300)])], "task")
    config = store(saver, {"other": 2}, first)
    admin.execute(DAMAGES["pieces"], (thread_key(database.tenant, "t"),))
    with pytest.raises(errors.DecodeError, match="'t' are missing"):
        Checkpointer(database).get_delta_channel_history(config=config, channels=["messages"])


@pytest.mark.parametrize(
    "table", [("checkpoint", "body"), ("piece", "payload"), ("pending_write", "payload")]
)
def test_any_byte_may_be_wrong(
    database: Database, admin: psycopg.Connection[Any], table: tuple[str, str]
) -> None:
    """Nothing seals these bytes: what is read may be wrong, but no error is a raw one."""
    name, column = table
    saver = Checkpointer(database)
    config = store(saver, {"messages": [HumanMessage("x" * 90, id="m")], "n": {"k": [1, "two"]}}, user="u")
    saver.put_writes(config, [("n", {"deep": [1, 2, 3]})], "task")
    key = thread_key(database.tenant, "t")
    rows = admin.execute(f"SELECT {column} FROM haive.{name} WHERE thread_key = %s", (key,)).fetchall()  # type: ignore[arg-type]
    rng = random.Random(7)
    for _ in range(150):
        for (whole,) in rows:
            broken = bytearray(whole)
            broken[rng.randrange(len(broken))] = rng.randrange(256)
            broken = broken[: rng.choice([len(broken), rng.randrange(len(broken) + 1)])]
            update = f"UPDATE haive.{name} SET {column} = %s WHERE thread_key = %s AND {column} = %s"
            admin.execute(update, (bytes(broken), key, whole))  # type: ignore[arg-type]
            for call in (
                lambda s: s.get_tuple(thread()),
                lambda s: list(s.list(None)),
                lambda s: s.get_delta_channel_history(config=thread(), channels=["n"]),
            ):
                with contextlib.suppress(errors.CodecError):
                    call(Checkpointer(database))
            admin.execute(update, (whole, key, bytes(broken)))  # type: ignore[arg-type]
