"""Deleting, pruning and copying beside writers of the same threads: see 0001, "Interleavings"."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from haive_persistence import errors
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.db import Database, load_queries
from tests.builders import store, thread, until
from tests.checkpointer import interleaving_worker

DELETES = ("delete_thread", "delete_checkpoints_of", "delete_writes_of", "delete_pieces_of")
VALUES = {"text": "x" * 2000, "items": ["y" * 2000]}


@pytest.fixture
def session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A session whose transaction the test steps through."""
    with psycopg.connect(dsn) as connection:
        yield connection
        connection.rollback()


@pytest.mark.parametrize("after", range(1, 4))
@pytest.mark.parametrize("existed", [False, True])
def test_a_thread_created_between_the_statements_of_a_delete_stays(
    saver: Checkpointer,
    new_saver: Callable[[], Checkpointer],
    database: Database,
    session: psycopg.Connection[Any],
    after: int,
    existed: bool,
) -> None:
    """Each statement of a delete has its own snapshot: the later ones see what was created meanwhile."""
    queries = load_queries("checkpointer")
    params = {"threads": [thread_key(database.tenant, "t")], "tenant": database.tenant}
    if existed:
        store(saver, {"old": 1})
        saver.delete_thread("t")
    for name in DELETES[:after]:
        session.execute(queries[name], params)  # type: ignore[arg-type]
    config = store(new_saver(), VALUES)
    saver.put_writes(config, [("items", ["z" * 2000])], "task")
    for name in DELETES[after:]:
        session.execute(queries[name], params)  # type: ignore[arg-type]
    session.commit()
    found = new_saver().get_tuple(thread())
    assert found is not None
    assert found.checkpoint["channel_values"] == VALUES
    assert found.pending_writes == [("task", "items", ["z" * 2000])]


def test_a_delete_takes_all_of_a_thread(saver: Checkpointer, database: Database, dsn: str) -> None:
    saver.put_writes(store(saver, VALUES), [("items", ["z" * 2000])], "task")
    saver.delete_thread("t")
    assert rows_of(dsn, database.tenant) == 0


def rows_of(dsn: str, tenant: str, condition: str = "true") -> int:
    tables = ("thread", "piece", "checkpoint", "pending_write")
    counts = " + ".join(
        f"(SELECT count(*) FROM haive.{t} x WHERE tenant_id = %(tenant)s AND {condition})" for t in tables
    )
    with psycopg.connect(dsn) as connection:
        return connection.execute(f"SELECT {counts}", {"tenant": tenant}).fetchone()[0]  # type: ignore[arg-type,index]


@pytest.mark.parametrize("operation", ["prune", "delete_for_runs", "copy_thread", "delete_thread"])
def test_an_operation_waits_for_one_that_holds_the_thread(
    saver: Checkpointer, database: Database, session: psycopg.Connection[Any], operation: str
) -> None:
    """The thread is deleted while it waits: that is no error, but where there is nothing left to copy."""
    store(saver, VALUES, run_id="r")
    key = thread_key(database.tenant, "t")
    session.execute("DELETE FROM haive.thread WHERE thread_key = %s", (key,))
    calls: dict[str, Callable[[], None]] = {
        "prune": lambda: saver.prune(["t"]),
        "delete_for_runs": lambda: saver.delete_for_runs(["r"]),
        "copy_thread": lambda: saver.copy_thread("t", "copy"),
        "delete_thread": lambda: saver.delete_thread("t"),
    }
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(calls[operation])
        until(lambda: waits_for_a_lock(session))
        session.commit()
        if operation == "copy_thread":
            with pytest.raises(errors.NotFoundError):
                called.result(30)
        else:
            called.result(30)
    assert saver.get_tuple(thread("copy")) is None


def test_a_copy_that_began_before_loses_the_checkpoints_of_a_deleted_run_too(
    saver: Checkpointer, database: Database, session: psycopg.Connection[Any]
) -> None:
    store(saver, VALUES, run_id="r")
    source, target = (thread_key(database.tenant, name) for name in ("t", "copy"))
    params = {"thread": source, "target": target, "tenant": database.tenant, "epoch": 1, "thread_id": "copy"}
    queries = load_queries("checkpointer")
    for name in ("lock_source", "lock_target", "copy_checkpoints", "copy_writes", "copy_pieces"):
        session.execute(queries[name], params)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(saver.delete_for_runs, ["r"])
        until(lambda: waits_for_a_lock(session))
        session.commit()
        called.result(30)
    assert [saver.get_tuple(thread(name)) for name in ("t", "copy")] == [None, None]


def waits_for_a_lock(session: psycopg.Connection[Any]) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return session.execute(query).fetchone()[0] > 0  # type: ignore[index]


def test_copies_in_both_directions_do_not_wait_for_each_other(saver: Checkpointer) -> None:
    for id_ in ("a", "b"):
        store(saver, {"of": id_}, thread(id_))

    def copy(direction: tuple[str, str]) -> None:
        for _ in range(25):
            saver.copy_thread(*direction)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(copy, [("a", "b"), ("b", "a")]))
    assert {t.checkpoint["channel_values"]["of"] for t in saver.list(thread("a"))} == {"a", "b"}


def test_a_pruned_thread_with_missing_pieces_is_said_to_be_damaged(
    saver: Checkpointer, new_saver: Callable[[], Checkpointer], database: Database, dsn: str
) -> None:
    config = store(saver, VALUES)
    store(saver, VALUES, config)
    with psycopg.connect(dsn) as connection:
        connection.execute("DELETE FROM haive.piece WHERE tenant_id = %s", (database.tenant,))
    for operation in (lambda s: s.prune(["t"]), lambda s: s.get_tuple(thread())):
        with pytest.raises(errors.DecodeError, match="damaged"):
            operation(new_saver())
    new_saver().delete_thread("t")
    assert rows_of(dsn, database.tenant) == 0


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("seconds", [3, pytest.param(45, marks=pytest.mark.slow)])
def test_many_at_once(dsn: str, tenant: str, sealed: bool, seconds: int) -> None:
    """Six threads and two processes on three threads' ids: no internal error, and nothing is cut."""
    arguments = [dsn, tenant, str(sealed)]
    worker = [sys.executable, "-m", "tests.checkpointer.interleaving_worker"]
    processes = [
        subprocess.Popen(
            [*worker, *arguments, str(seed), str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in (100, 101)
    ]
    opened = interleaving_worker.database(dsn, sealed)
    view = opened.for_tenant(tenant)
    try:
        with ThreadPoolExecutor(6) as pool:
            runs = [pool.submit(interleaving_worker.run, view, seed, seconds) for seed in range(6)]
            assert sum(run.result(seconds + 60)["done"] for run in runs) > 50
        for process in processes:
            output, _ = process.communicate(timeout=seconds + 60)
            assert process.returncode == 0, output
        reader = Checkpointer(view)
        for id_ in interleaving_worker.IDS:
            for found in reader.list(thread(id_)):
                interleaving_worker.check(found)
        gone = "NOT EXISTS (SELECT FROM haive.thread t WHERE t.thread_key = x.thread_key)"
        assert rows_of(dsn, tenant, gone) == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        opened.close()
