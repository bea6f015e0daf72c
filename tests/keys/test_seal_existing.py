"""Turning encryption on where there is data: what was there is sealed, what is forged later is not."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence import Checkpointer, EncryptionConfig
from haive_persistence.checkpointer import DamagedCheckpoint, UnsealedCheckpoint
from haive_persistence.checkpointer.seal_threads import SealThreads
from haive_persistence.db import Database, RoundTrip
from haive_persistence.db.protocol import run_sync
from haive_persistence.errors import (
    ConfigError,
    DatabaseError,
    PlaintextRefusedError,
    SealError,
    WrongKeyError,
)
from tests.checkpointer.conftest import store, thread

KEY = secrets.token_bytes(32)
REFUSING = EncryptionConfig(encryption_key=KEY)
ACCEPTING = EncryptionConfig(encryption_key=KEY, accept_earlier_plaintext=True)
TABLES = {"piece": "payload", "checkpoint": "body", "pending_write": "payload"}


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def plaintext(admin: psycopg.Connection[Any], tenant: str) -> Callable[[], int]:
    """How many rows of the tenant are in plaintext."""

    def count() -> int:
        counts = [
            admin.execute(
                f"SELECT count(*) FROM haive.{table} WHERE tenant_id = %s AND get_byte({column}, 0) < 128",  # type: ignore[arg-type]
                (tenant,),
            ).fetchone()[0]  # type: ignore[index]
            for table, column in TABLES.items()
        ]
        return sum(counts)

    return count


def with_key(database: Database, encryption: EncryptionConfig = REFUSING) -> Checkpointer:
    """A saver of another process."""
    return Checkpointer(database.with_encryption(encryption))


def fill(saver: Checkpointer, thread_id: str) -> dict[str, Any]:
    """Three checkpoints, with pending writes, a subgraph, a snapshot and a long list."""
    messages = [HumanMessage(f"question {no} " * 30, id=f"m{no}") for no in range(40)]
    config = store(saver, {"messages": messages[:20], "n": 1}, thread(thread_id), run_id=f"run-{thread_id}")
    saver.put_writes(config, [("messages", [AIMessage("yes", id="a")])], "task")
    config = store(
        saver, {"messages": messages, "s": _DeltaSnapshot([1, 2])}, config, run_id=f"run-{thread_id}"
    )
    saver.put_writes(config, [("n", 3)], "task-2")
    store(saver, {"inner": [1]}, thread(thread_id, ns="sub:1"))
    return store(saver, {"messages": messages[5:], "n": 2}, config, run_id=f"run-{thread_id}")


def content(saver: Checkpointer, thread_id: str) -> list[Any]:
    return [
        (t.config, t.checkpoint, t.metadata, t.parent_config, t.pending_writes)
        for t in saver.list({"configurable": {"thread_id": thread_id}})
    ]


def test_threads_are_sealed_as_they_were(database: Database, plaintext: Callable[[], int]) -> None:
    clear = Checkpointer(database)
    for name in ("a", "b", "c"):
        fill(clear, name)
    before = {name: content(clear, name) for name in ("a", "b", "c")}
    told: list[Any] = []
    saver = with_key(database)
    assert saver.seal_existing(told.append) == 3
    assert [tuple(progress) for progress in told] == [(1, 3), (2, 3), (3, 3)]
    assert plaintext() == 0
    assert saver.seal_existing() == 0
    for name, expected in before.items():
        assert content(with_key(database), name) == expected
    with pytest.raises(WrongKeyError):
        Checkpointer(database).get_tuple(thread("a"))
    # what is found by keys of its own, and what is bound, works on
    saver.delete_for_runs(["run-a"])
    assert [
        t.config["configurable"]["checkpoint_ns"] for t in saver.list({"configurable": {"thread_id": "a"}})
    ] == ["sub:1"]
    saver.prune(["b"])
    saver.copy_thread("c", "d")
    assert len(content(with_key(database), "d")) == len(before["c"])


def in_chunks(database: Database, chunk_bytes: int) -> SealThreads:
    parts = with_key(database)._parts
    return SealThreads(parts.context, parts.reads.views.names, chunk_bytes)


@pytest.mark.parametrize("chunk_bytes", [1, 400, 5000])
def test_a_large_thread_is_sealed_in_chunks(
    database: Database, admin: psycopg.Connection[Any], plaintext: Callable[[], int], chunk_bytes: int
) -> None:
    """Its pieces need not fit into one statement. One that ends in between leaves the thread as it was."""
    fill(Checkpointer(database), "large")
    fill(Checkpointer(database), "other")
    before, rows = content(Checkpointer(database), "large"), plaintext()
    updates: list[str] = []

    def hang_up(trip: RoundTrip) -> None:
        updates.extend(text for text in trip.statements if "SET payload = k.payload" in text)
        if len(updates) == 2:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    database.hooks.append(hang_up)
    with pytest.raises(DatabaseError):
        run_sync(in_chunks(database, chunk_bytes).seal_existing(database.blocking))
    database.hooks.remove(hang_up)
    assert plaintext() == rows
    assert content(with_key(database, ACCEPTING), "large") == before  # which seals it
    assert run_sync(in_chunks(database, chunk_bytes).seal_existing(database.blocking)) == 1
    assert plaintext() == 0
    assert content(with_key(database), "large") == before
    assert len(content(with_key(database), "other")) == len(before)


async def test_sealing_does_not_block(database: Database, plaintext: Callable[[], int]) -> None:
    fill(Checkpointer(database), "a")
    assert await with_key(database).aseal_existing() == 1
    assert plaintext() == 0


def test_a_listing_tells_what_is_not_sealed_yet_from_what_is_damaged(
    database: Database, admin: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    store(Checkpointer(database), {"a": 1}, thread("old"))
    for key_exists in (False, True):
        if key_exists:
            store(with_key(database), {"a": 2}, thread("sealed"))
            store(with_key(database), {"a": 3}, thread("damaged"))
            admin.execute(
                "UPDATE haive.checkpoint c SET body = set_byte(body, 30, get_byte(body, 30) # 1)"
                " FROM haive.thread t WHERE t.thread_key = c.thread_key AND t.tenant_id = %s"
                " AND t.thread_id = 'damaged'",
                (database.tenant,),
            )
        caplog.clear()
        listed = {t.config["configurable"]["thread_id"]: t for t in with_key(database).list(None)}
        old = listed.pop("old")
        assert type(old) is UnsealedCheckpoint
        assert "seal_existing()" in old.metadata["unsealed"]  # type: ignore[typeddict-item]
        with pytest.raises(PlaintextRefusedError):
            old.checkpoint  # noqa: B018
        levels = {record.levelname for record in caplog.records if "'old'" in record.getMessage()}
        assert levels == {"WARNING"}
    assert type(listed.pop("damaged")) is DamagedCheckpoint
    assert listed.pop("sealed").checkpoint["channel_values"] == {"a": 2}
    assert listed == {}

    Checkpointer(database).delete_thread("damaged")
    assert with_key(database).seal_existing() == 1
    assert {type(t) for t in with_key(database).list(None)} == {CheckpointTuple}
    _forge(admin, database)
    assert type(next(iter(with_key(database).list(None)))) is DamagedCheckpoint


def _forge(admin: psycopg.Connection[Any], database: Database) -> None:
    """Put plaintext in the place of what is sealed."""
    clear = database.for_tenant(f"{database.tenant}-clear")
    store(Checkpointer(clear), {"a": 1}, thread("forged"))
    admin.execute(
        "UPDATE haive.checkpoint SET body = (SELECT body FROM haive.checkpoint WHERE tenant_id = %s LIMIT 1)"
        " WHERE tenant_id = %s",
        (clear.tenant, database.tenant),
    )


def test_until_then_it_is_refused_or_sealed_when_it_is_read(
    database: Database, plaintext: Callable[[], int]
) -> None:
    clear = Checkpointer(database)
    config = fill(clear, "a")
    fill(clear, "b")
    before = content(clear, "a")
    for key_exists in (False, True):
        with pytest.raises(PlaintextRefusedError, match=r"call seal_existing\(\), or set accept_earlier"):
            with_key(database).get_tuple(thread("a"))
        accepting = with_key(database, ACCEPTING)
        assert accepting.get_tuple(config) is not None
        assert len(list(accepting.list(None))) >= 8
        if not key_exists:
            assert content(accepting, "a") == before
            store(with_key(database), {"x": 1}, thread("sealed"))
    # both threads were sealed by being read
    assert plaintext() == 0
    assert content(with_key(database), "a") == before


@pytest.mark.parametrize(
    "use",
    [
        lambda s, config: s.get_tuple(config),
        lambda s, config: list(s.list(thread("a"))),
        lambda s, config: store(s, {"n": 5}, config),
        lambda s, config: s.put_writes(config, [("n", 1)], "task-9"),
        lambda s, config: s.prune(["a"]),
        lambda s, config: s.copy_thread("a", "copy"),
        lambda s, config: s.delete_for_runs(["run-a"]),
        lambda s, config: s.get_delta_channel_history(config=config, channels=["s"]),
        lambda s, config: s.delete_thread("a"),
    ],
    ids=["get", "list", "put", "write", "prune", "copy", "runs", "delta", "delete"],
)
def test_everything_can_be_done_to_an_older_thread(database: Database, use: Callable[..., Any]) -> None:
    config = fill(Checkpointer(database), "a")
    store(with_key(database), {"x": 1}, thread("sealed"))
    use(with_key(database, ACCEPTING), config)
    saver = with_key(database, ACCEPTING)
    list(saver.list(None))
    saver.seal_existing()
    list(with_key(database).list(None))


@pytest.mark.parametrize("table", TABLES)
def test_plaintext_forged_later_is_refused(
    database: Database, admin: psycopg.Connection[Any], table: str
) -> None:
    """Whatever its row says: the number of the transaction cannot be chosen."""
    fill(Checkpointer(database), "a")
    store(with_key(database), {"x": 1}, thread("sealed"))
    column = TABLES[table]
    admin.execute(f"UPDATE haive.{table} SET {column} = {column} WHERE tenant_id = %s", (database.tenant,))  # type: ignore[arg-type]
    accepting = with_key(database, ACCEPTING)
    for use in (accepting.seal_existing, lambda: list(accepting.list(thread("a")))):
        with pytest.raises(PlaintextRefusedError):
            use()


def test_the_recorded_moment_cannot_be_moved(database: Database, admin: psycopg.Connection[Any]) -> None:
    fill(Checkpointer(database), "a")
    store(with_key(database), {"x": 1}, thread("sealed"))
    other = f"{database.tenant}-2"
    store(with_key(database.for_tenant(other)), {"x": 1})
    admin.execute(
        "UPDATE haive.data_key SET plaintext_before = (SELECT plaintext_before FROM haive.data_key"
        " WHERE tenant_id = %s) WHERE tenant_id = %s",
        (other, database.tenant),
    )
    with pytest.raises(SealError):
        with_key(database).seal_existing()


def test_what_is_found_by_hashes_includes_older_threads(database: Database) -> None:
    """Their hashes are others, without the key: nothing may be missing for that."""
    clear = Checkpointer(database)
    for name in ("a", "b"):
        store(clear, {"n": 1}, thread(name), user="ann", run_id=f"run-{name}")
    store(with_key(database), {"x": 1}, thread("sealed"), user="ann")
    for use in (
        lambda s: list(s.list(None, filter={"user": "ann"})),
        lambda s: s.delete_for_runs(["run-a"]),
    ):
        with pytest.raises(PlaintextRefusedError, match="seal_existing"):
            use(with_key(database))
    assert len(list(with_key(database, ACCEPTING).list(None, filter={"user": "ann"}))) == 3
    with_key(database, ACCEPTING).delete_for_runs(["run-a"])
    assert len(list(with_key(database).list(None, filter={"user": "ann"}))) == 2


def test_a_first_key_made_elsewhere_is_learned_by_a_filter(database: Database) -> None:
    for encryption in (REFUSING, ACCEPTING):
        tenant = database.for_tenant(f"{database.tenant}-{encryption.accept_earlier_plaintext}")
        listing = with_key(tenant, encryption)
        assert list(listing.list(None, filter={"user": "ann"})) == []
        store(with_key(tenant), {"n": 1}, user="ann")
        assert len(list(listing.list(None, filter={"user": "ann"}))) == 1


def test_after_it_was_all_sealed_nothing_is_accepted(
    database: Database, admin: psycopg.Connection[Any]
) -> None:
    saver = with_key(database, ACCEPTING)
    fill(Checkpointer(database), "a")
    assert saver.seal_existing() == 1
    row = admin.execute(
        "SELECT plaintext_threads FROM haive.data_key WHERE tenant_id = %s", (database.tenant,)
    ).fetchone()
    assert row == (False,)


def test_a_dump_restored_elsewhere(database: Database, admin: psycopg.Connection[Any]) -> None:
    """Its rows do not tell when they were written: somebody has to say that they are trusted."""
    fill(Checkpointer(database), "a")
    store(with_key(database), {"x": 1}, thread("sealed"))
    for table in TABLES:  # what a dump does
        admin.execute(
            f"UPDATE haive.{table} SET tenant_id = tenant_id WHERE tenant_id = %s", (database.tenant,)
        )  # type: ignore[arg-type]
    with pytest.raises(PlaintextRefusedError):
        with_key(database).seal_existing()
    assert with_key(database).seal_existing(trust_all=True) == 1
    assert with_key(database).get_tuple(thread("a")) is not None


@pytest.mark.parametrize("identifier", [1, 2**63 - 1])
def test_another_server_counts_other_transactions(
    database: Database, admin: psycopg.Connection[Any], identifier: int
) -> None:
    """The recorded number means nothing on a server that was restored to, whatever its own identifier."""
    fill(Checkpointer(database), "a")
    store(with_key(database), {"x": 1}, thread("sealed"))
    own = admin.execute("SELECT pg_get_functiondef('haive.cluster_id'::regproc)").fetchone()
    assert own is not None
    admin.execute(
        "CREATE OR REPLACE FUNCTION haive.cluster_id() RETURNS bigint LANGUAGE sql STABLE"
        f" RETURN {identifier}::bigint"
    )
    try:
        for read in (
            lambda: with_key(database).seal_existing(),
            lambda: with_key(database, ACCEPTING).get_tuple(thread("a")),
        ):
            with pytest.raises(PlaintextRefusedError, match="this server did not record"):
                read()
    finally:
        admin.execute(own[0])
    assert with_key(database).seal_existing() == 1


def test_a_crash_in_the_middle(database: Database, plaintext: Callable[[], int]) -> None:
    clear = Checkpointer(database)
    for no in range(4):
        fill(clear, f"t{no}")
    before = {f"t{no}": content(clear, f"t{no}") for no in range(4)}

    def crash(progress: Any) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_key(database).seal_existing(crash)
    assert plaintext() > 0
    assert with_key(database).seal_existing() == 2
    assert plaintext() == 0
    for name, expected in before.items():
        assert content(with_key(database), name) == expected


def test_several_processes_and_writers_at_once(
    database: Database, plaintext: Callable[[], int], connected: Callable[..., Database]
) -> None:
    clear = Checkpointer(database)
    configs = {f"t{no}": fill(clear, f"t{no}") for no in range(8)}
    stop = threading.Event()

    def own(encryption: EncryptionConfig) -> Checkpointer:
        return Checkpointer(connected(tenant=database.tenant, encryption=encryption))

    def write(name: str) -> int:
        saver, config, done = own(ACCEPTING), configs[name], 0
        while not stop.is_set() or done < 3:
            config = store(saver, {"n": done, "messages": [HumanMessage("more " * 50, id=str(done))]}, config)
            saver.put_writes(config, [("n", done)], "task")
            done += 1
        return done

    with ThreadPoolExecutor(12) as pool:
        writers = {name: pool.submit(write, name) for name in ("t0", "t3", "t7")}
        sealers = [pool.submit(own(REFUSING).seal_existing) for _ in range(3)]
        for sealer in sealers:
            sealer.result(timeout=60)
        stop.set()
        written = {name: writer.result(timeout=60) for name, writer in writers.items()}
    assert plaintext() == 0
    for name in configs:
        found = list(with_key(database).list(thread(name)))
        assert len(found) == 3 + written.get(name, 0)


def test_it_needs_a_key(database: Database) -> None:
    with pytest.raises(ConfigError, match="encryption_key"):
        Checkpointer(database).seal_existing()


def test_pruning_without_the_key_leaves_what_is_to_be_sealed(database: Database) -> None:
    clear = Checkpointer(database)
    fill(clear, "a")
    before = content(clear, "a")
    keyed = with_key(database, ACCEPTING)
    store(keyed, {"n": 1}, thread("b"))
    for cut in (lambda: clear.prune(["a"]), lambda: clear.delete_for_runs(["run-a"])):
        with pytest.raises(PlaintextRefusedError):
            cut()
    assert content(keyed, "a") == before
    keyed.prune(["a"])
    assert keyed.get_tuple(thread("a")) is not None
