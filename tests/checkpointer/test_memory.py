"""What a process remembers of threads, and in how much memory."""

from __future__ import annotations

import secrets
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage

from haive_persistence import errors
from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.db import Database
from haive_persistence.db.batching.group_commit import GroupCommit
from tests.builders import store, thread, values_of


def test_one_long_thread_stays_within_the_memory_it_may_have(database: Database, new_saver: Any) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=1_000_000))
    config = store(saver, {"n": 0})
    for i in range(200):
        text = f"{i} ".ljust(20_000, chr(97 + i % 26))
        config = store(saver, {"text": text, "messages": [HumanMessage(text, id=str(i))]}, config)
        if i % 20 == 0:
            assert values_of(saver)["text"] == text
    log = saver._parts.context.cache.get(thread_key(saver._parts.context.tenant, "t").bytes)
    assert log is not None
    assert log.bytes_taken() < 4_000_000  # it looks every 64 operations
    assert len(list(saver.list(thread()))) == 201
    assert values_of(saver) == values_of(new_saver())


def test_threads_that_made_room_for_others_are_not_stored_again(database: Database, dsn: str) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=0))
    messages = [HumanMessage(f"{i} ".ljust(200, "x"), id=str(i)) for i in range(100)]
    configs = [store(saver, {"messages": messages}, thread(t)) for t in "abc"]
    for n in range(50):
        configs = [store(saver, {"messages": messages, "n": n}, config) for config in configs]
    with psycopg.connect(dsn) as conn:
        sql = "SELECT count(*) FROM haive.piece WHERE tenant_id = %s AND length(payload) > 30"
        assert 300 <= conn.execute(sql, [database.tenant]).fetchone()[0] <= 3 * 110
    for t in "abc":
        found = list(Checkpointer(database).list(thread(t)))
        assert len(found) == 51
        assert all(f.checkpoint["channel_values"]["messages"] == messages for f in found)


def test_what_could_not_be_sent_stays_within_the_memory_it_may_have(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(cache_bytes=1_000_000))
    config = store(saver, {"n": 0})
    config = store(saver, {"n": 1}, config)  # from here on it knows where it may write

    async def unreachable(*_: Any, **__: Any) -> Any:
        raise errors.UnavailableError("the database is away", sqlstate=None)

    with monkeypatch.context() as patch:
        patch.setattr(GroupCommit, "fetch_all", unreachable)
        for i in range(100):
            with pytest.raises(errors.UnavailableError):
                store(saver, {"text": f"{i} ".ljust(50_000, "x")}, config)
    for n in range(100):
        config = store(saver, {"n": n}, config)
    assert saver._parts.context.cache.get(thread_key(database.tenant, "t").bytes).bytes_taken() < 4_000_000
    assert values_of(saver) == {"n": 99}


@pytest.mark.parametrize("limit", [None, 40])
def test_a_history_that_is_too_large_for_one_read_comes_in_several(
    database: Database, limit: int | None
) -> None:
    config: Any = thread()
    for n in range(50):
        config = store(Checkpointer(database), {"n": n, "blob": secrets.token_hex(25_000)}, config)
    small = Checkpointer(database, config=CheckpointConfig(max_read_bytes=300_000))
    for filter in (None, {"step": 1}):
        found = [
            t.checkpoint["channel_values"]["n"] for t in small.list(thread(), limit=limit, filter=filter)
        ]
        assert found == list(range(49, -1, -1))[:limit]


def test_pieces_that_are_gone_are_told_of(saver: Checkpointer, new_saver: Any, dsn: str) -> None:
    config = store(saver, {"messages": [HumanMessage("x" * 200, id="m")]})
    with psycopg.connect(dsn) as conn:
        conn.execute("DELETE FROM haive.piece WHERE tenant_id = %s", [saver.database.tenant])
    for read in (
        lambda: new_saver().get_tuple(config),
        lambda: list(new_saver().list(config)),
    ):
        with pytest.raises(errors.DecodeError, match="its data is damaged"):
            read()
