"""Several threads, tasks, processes and savers at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.db import Database
from haive_persistence.db.batching.group_commit import GroupCommit
from tests.builders import make_checkpoint, store, thread, values_of


def test_a_first_put_that_is_sent_again_when_others_know_the_thread_it_made(
    saver: Checkpointer, new_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is lost; before it is sent again the thread is read, added to, and deleted."""
    usual = GroupCommit.fetch_all
    messages = [HumanMessage("x" * 200, id=str(i)) for i in range(5)]
    other = new_saver()

    async def twice(self: GroupCommit, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(GroupCommit, "fetch_all", usual)
        await usual(self, *args, **options)
        store(other, {"n": 1, "messages": messages})
        new_saver().delete_thread("t")
        return await usual(self, *args, **options)

    monkeypatch.setattr(GroupCommit, "fetch_all", twice)
    store(saver, {"n": 1})
    assert values_of(new_saver()) == {"n": 1}
    store(other, {"n": 1, "messages": messages})
    assert values_of(new_saver())["messages"] == messages


def test_a_thread_made_twice_with_a_deletion_in_between(
    saver: Checkpointer, new_saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two first puts is slow on its way; the other made the thread, which is deleted meanwhile."""
    usual = GroupCommit.fetch_all
    held, go, calls = threading.Event(), threading.Event(), itertools.count()

    async def slow(self: GroupCommit, *args: Any, **options: Any) -> Any:
        if next(calls) == 0:
            held.set()
            go.wait(10)
        return await usual(self, *args, **options)

    monkeypatch.setattr(GroupCommit, "fetch_all", slow)
    messages = [HumanMessage("x" * 200, id=str(i)) for i in range(5)]
    first = threading.Thread(target=store, args=(saver, {"n": 1}))
    first.start()
    held.wait(10)
    store(saver, {"messages": messages})
    new_saver().delete_thread("t")
    go.set()
    first.join()
    store(saver, {"messages": messages})
    assert values_of(new_saver())["messages"] == messages


def test_a_copy_holds_the_thread_it_goes_to(saver: Checkpointer, database: Database, dsn: str) -> None:
    store(saver, {"n": 1}, thread("target"))
    key = thread_key(database.tenant, "target")
    params = {"target": key, "epoch": 1, "tenant": database.tenant, "thread_id": "target"}
    with psycopg.connect(dsn) as copying, psycopg.connect(dsn) as deleting:
        copying.execute(database.queries("checkpointer")["lock_target"].encode(), params)
        deleting.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            deleting.execute("DELETE FROM haive.thread WHERE thread_key = %s", (key,))


def test_parallel_tasks_of_one_run(saver: Checkpointer, new_saver: Any) -> None:
    config = store(saver, {"a": 1})

    def write(i: int) -> None:
        saver.put_writes(config, [("messages", [HumanMessage(f"result {i} " + "x" * 200)])], f"task-{i:02}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(48)))
    found = new_saver().get_tuple(thread())
    assert [w[2][0].content.split()[1] for w in found.pending_writes] == [str(i) for i in range(48)]


def test_two_processes_on_one_thread(new_saver: Any) -> None:
    """Both write checkpoints and name each other's messages; neither waits for nor overwrites the other."""
    a, b = new_saver(), new_saver()
    config = store(a, {"messages": [HumanMessage("start")]})
    for i in range(30):
        writer = a if i % 2 else b
        found = writer.get_tuple(thread())
        messages = [*found.checkpoint["channel_values"]["messages"], HumanMessage(f"m{i}", id=str(i))]
        config = store(writer, {"messages": messages}, found.config)
    assert [m.content for m in values_of(new_saver(), config)["messages"]] == [
        "start",
        *(f"m{i}" for i in range(30)),
    ]


def test_writers_racing_with_prune_and_delete(new_saver: Any) -> None:
    """Whatever interleaves, a checkpoint that was acknowledged and not deleted reads back whole."""
    writer, pruner = new_saver(), new_saver()
    stop = threading.Event()
    failures: list[BaseException] = []

    def prune() -> None:
        try:
            while not stop.is_set():
                pruner.prune(["t"])
        except BaseException as exc:
            failures.append(exc)

    background = threading.Thread(target=prune)
    background.start()
    messages: list[Any] = []
    config = thread()
    try:
        for i in range(60):
            messages = [*messages, HumanMessage(f"m{i} " + "x" * 200, id=str(i))]
            config = store(writer, {"messages": messages}, config)
            writer.put_writes(config, [("messages", [AIMessage(f"w{i} " + "y" * 200)])], "task")
            found = new_saver().get_tuple(thread())
            assert found.checkpoint["channel_values"]["messages"] == messages
            assert found.pending_writes[0][2][0].content.startswith(f"w{i}")
    finally:
        stop.set()
        background.join()
    assert not failures


def test_locked_thread_does_not_block_other_threads(
    saver: Checkpointer, database: Database, dsn: str
) -> None:
    """Writers share round trips (and the incumbent's share a lock): one that must wait does so by itself."""
    started = [store(saver, {"n": i}, thread(str(i))) for i in range(8)]

    def write(i: int) -> None:
        store(saver, {"n": -1}, started[i])
        saver.put_writes(started[i], [("n", 1)], "task")

    with ThreadPoolExecutor(12) as pool, held(dsn, database, "0") as release:
        waiting = [pool.submit(write, 0) for _ in range(3)]
        for _ in range(5):
            for done in [pool.submit(write, i) for i in range(1, 8)]:
                done.result(timeout=20)
        assert not any(one.done() for one in waiting)
        assert values_of(saver, thread("0")) == {"n": 0}
        release()
        for one in waiting:
            one.result(timeout=20)
    assert values_of(saver, thread("0")) == {"n": -1}


async def test_locked_thread_does_not_block_other_tasks(
    saver: Checkpointer, database: Database, dsn: str
) -> None:
    started = [store(saver, {"n": i}, thread(str(i))) for i in range(8)]

    async def write(i: int) -> None:
        new = make_checkpoint({"n": -1})
        await saver.aput(started[i], new, {}, new["channel_versions"])  # type: ignore[arg-type]

    with held(dsn, database, "0") as release:
        waiting = [asyncio.create_task(write(0)) for _ in range(3)]
        for _ in range(5):
            await asyncio.wait_for(asyncio.gather(*(write(i) for i in range(1, 8))), 20)
        assert not any(one.done() for one in waiting)
        release()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert values_of(saver, thread("0")) == {"n": -1}


@contextmanager
def held(dsn: str, database: Database, thread_id: str) -> Iterator[Callable[[], None]]:
    """Another session has locked a thread's row, as prune does."""
    with psycopg.connect(dsn) as holder:
        key = thread_key(database.tenant, thread_id)
        holder.execute("SELECT FROM haive.thread WHERE thread_key = %s FOR UPDATE", (key,))
        yield holder.rollback


def test_first_puts_of_a_thread_race(new_saver: Any) -> None:
    """Several processes make the same thread at the same moment."""
    savers = [new_saver() for _ in range(8)]
    barrier = threading.Barrier(8)

    def first(i: int) -> None:
        barrier.wait()
        store(savers[i], {"messages": [HumanMessage(f"from {i} " + "x" * 100)]}, thread(checkpoint_id=None))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(first, range(8)))
    found = list(new_saver().list(thread()))
    assert sorted(t.checkpoint["channel_values"]["messages"][0].content[:6] for t in found) == [
        f"from {i}" for i in range(8)
    ]


def test_many_threads_read_one_thread_id(new_saver: Any, switching: None) -> None:
    """They share what the process knows of it, which changes while they read and write."""
    messages = [HumanMessage(f"m{i} " + "x" * 100, id=f"m{i}") for i in range(200)]
    elsewhere = new_saver()
    config = store(elsewhere, {"messages": messages})
    for _ in range(70):  # more than a process remembers
        config = store(elsewhere, {"messages": messages}, config)
    for round in range(5):
        saver = new_saver()
        for i in range(
            round, 200, 7
        ):  # a list in many ranges: frozen, and looked through by who puts it again
            messages[i] = HumanMessage(f"edited in {round} " + "x" * 100, id=f"m{i}")
        config = store(elsewhere, {"messages": messages}, config)
        barrier = threading.Barrier(6)

        def work(number: int, saver: Checkpointer = saver, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(4):
                found = list(saver.list(thread()))
                assert all(len(t.checkpoint["channel_values"]["messages"]) == 200 for t in found)
                assert found[-1].checkpoint["channel_values"]["messages"][-1].content.startswith("m199")
                values = {"messages": found[0].checkpoint["channel_values"]["messages"][number:]}
                store(saver, values, thread(ns=f"task:{number}"))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))


@pytest.fixture
def switching() -> Iterator[None]:
    """The interpreter goes from thread to thread as often as it can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_one_object_serves_blocking_and_async_code_together(saver: Checkpointer) -> None:
    async def both() -> None:
        config = store(saver, {"a": 1})  # blocking, inside a running loop
        found = await saver.aget_tuple(config)
        assert found is not None
        await asyncio.gather(*(saver.aput_writes(config, [("a", i)], f"task-{i}") for i in range(20)))
        assert len([t async for t in saver.alist(config)]) == 1
        await asyncio.to_thread(saver.put_writes, config, [("a", 1)], "from a thread")
        found = saver.get_tuple(config)
        assert found is not None
        assert len(found.pending_writes or []) == 21

    asyncio.run(both())
    asyncio.run(both())  # another loop, the same object


FORKS = """
import os, signal, sys, threading
from haive_persistence import Checkpointer
from tests.builders import store, thread

saver = Checkpointer(sys.argv[1])
messages = ["x" * 2000]
store(saver, {"messages": messages}, thread("shared"))
stop = threading.Event()


def write(i):
    config = thread(str(i))
    while not stop.is_set():
        config = store(saver, {"n": "y" * 100}, config)


writers = [threading.Thread(target=write, args=(i,)) for i in range(8)]
[one.start() for one in writers]
failed = 0
for i in range(15):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        config = store(saver, {"messages": [*messages, f"{i}" * 2000]}, thread("shared"))
        found = Checkpointer(sys.argv[1]).get_tuple(config)
        os._exit(found.checkpoint["channel_values"]["messages"][1] != f"{i}" * 2000)
    failed += os.waitpid(pid, 0)[1] != 0
stop.set()
[one.join() for one in writers]
print(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_children_of_a_busy_parent(database: Database, dsn: str) -> None:
    """They write in number blocks of their own, and wait neither for the parent's locks nor for its leaders."""
    environment = {**os.environ, "HAIVE_TENANT": database.tenant}
    command = [sys.executable, "-W", "ignore", "-c", FORKS, dsn]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_forked_while_another_thread_makes_a_tenants_parts(database: Database, dsn: str) -> None:
    code = """
import os, signal, sys, threading
from haive_persistence.checkpointer import Checkpointer, parts
from tests.builders import store, thread
saver, build = Checkpointer(sys.argv[1]), parts.SharedParts._build
store(saver, {"n": 0})
inside, leave = threading.Event(), threading.Event()


def wait_then_build(self, database):
    inside.set()
    leave.wait()
    return build(self, database)


parts.SharedParts._build = wait_then_build
other = threading.Thread(target=lambda: saver.for_tenant("another").get_tuple(thread()))
other.start()
inside.wait()
parts.SharedParts._build = build
child = os.fork()
if not child:
    signal.alarm(20)
    store(saver.for_tenant("third"), {"n": 1})
    os._exit(0)
status = os.waitpid(child, 0)[1]
leave.set()
other.join()
sys.exit(status != 0)
"""
    environment = {**os.environ, "HAIVE_TENANT": database.tenant}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, dsn], env=environment, check=True, timeout=120
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls the C library")
def test_children_forked_without_pythons_knowledge(database: Database, dsn: str) -> None:
    """As by uWSGI, unless it is told otherwise."""
    code = """
import ctypes, os, sys
from langchain_core.messages import HumanMessage
from haive_persistence.checkpointer import Checkpointer
from tests.builders import store
saver = Checkpointer(sys.argv[1])
config = store(saver, {"n": 0})
child = ctypes.PyDLL(None).fork() == 0
who = "child" if child else "parent"
if not child:
    os.wait()
store(saver, {"messages": [HumanMessage(who * 50, id=f"{who} {i}") for i in range(6)]}, config)
os._exit(0)
"""
    environment = {**os.environ, "HAIVE_TENANT": database.tenant}
    subprocess.run([sys.executable, "-c", code, dsn], env=environment, check=True, timeout=120)
    newest, before, _ = Checkpointer(database).list(thread())
    for found, who in ((newest, "parent"), (before, "child")):
        ids = [message.id for message in found.checkpoint["channel_values"]["messages"]]
        assert ids == [f"{who} {i}" for i in range(6)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls the C library")
@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_forked_children_draw_number_blocks_of_their_own(fork: str) -> None:
    """Also before any of them has a saver, and whether Python knows that they were forked or not."""
    code = f"""
import ctypes, os
from haive_persistence import Checkpointer
from haive_persistence.checkpointer.parts import fork_safety
from haive_persistence.checkpointer.storage.piece_numbers import new_block
reader, writer = os.pipe()
for _ in range(3):
    if {fork}() == 0:
        fork_safety.check_pid()
        os.write(writer, b"%d " % new_block())
        os._exit(0)
    os.wait()
print(len({{*os.read(reader, 1000).split(), b"%d" % new_block()}}))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "4"
