"""kill -9 of client, backend and postmaster under sixteen writers: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from langchain_core.messages import HumanMessage

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import PersistenceConfig
from tests.builders import store, thread, until
from tests.checkpointer.durability_writer import WRITERS, advance, config, messages

ROUNDS = 50
KILLS = ("client", "backend", "postmaster")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A server of its own, with fsync on."""
    directory = Path(tempfile.mkdtemp(prefix="haive-durable-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class Writers:
    """The writing process and what it was told is kept."""

    def __init__(self, data_dir: Path, acknowledged: dict[str, tuple[int, str]]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpointer.durability_writer", str(data_dir)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self.acknowledged = acknowledged
        self.count = 0
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            thread, step, id_ = line.split()
            self.acknowledged[thread] = (int(step), id_)
            self.count += 1

    def wait_for(self, count: int) -> None:
        """Until that many more checkpoints were acknowledged."""
        goal = self.count + count

        def reached() -> bool:
            assert self.process.poll() is None, "the writers died by themselves"
            return self.count >= goal

        until(reached, seconds=60, why=lambda: "the writers make no progress")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _postmaster(data_dir: Path) -> psutil.Process:
    pid = int(next(data_dir.rglob("postmaster.pid")).read_text().splitlines()[0])
    return psutil.Process(pid)


def _kill_server_part(data_dir: Path, what: str, rng: random.Random) -> None:
    postmaster = _postmaster(data_dir)
    if what == "postmaster":
        children = postmaster.children()
        os.kill(postmaster.pid, signal.SIGKILL)
        psutil.wait_procs([postmaster, *children], timeout=30)
        return
    backends = [p for p in postmaster.children() if _is_client_backend(p)]
    os.kill(rng.choice(backends).pid, signal.SIGKILL)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _is_client_backend(process: psutil.Process) -> bool:
    title = _title(process)
    return title.startswith("postgres:") and ("INSERT" in title or "SELECT" in title or "idle" in title)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_acknowledged_is_lost(data_dir: Path) -> None:
    rng = random.Random(2026)
    acknowledged: dict[str, tuple[int, str]] = {}
    for round_number in range(ROUNDS):
        writers = Writers(data_dir, acknowledged)
        try:
            writers.wait_for(WRITERS * 2)
            what = KILLS[round_number % 3]
            if what != "client":
                _kill_server_part(data_dir, what, rng)
                writers.wait_for(WRITERS)  # they go on by themselves when the server is back
        finally:
            writers.kill()
        _everything_is_there(data_dir, acknowledged)


def _everything_is_there(data_dir: Path, acknowledged: dict[str, tuple[int, str]]) -> None:
    with Checkpointer(PersistenceConfig(data_dir=data_dir)) as saver:
        for thread, (step, id_) in list(acknowledged.items()):
            found = saver.get_tuple(config(thread, id_))
            assert found is not None, f"{thread}: step {step} was acknowledged and is gone"
            assert found.metadata["step"] == step
            assert found.checkpoint["channel_values"]["messages"] == messages(thread, step)
            latest = saver.get_tuple(config(thread))
            assert latest is not None
            at = latest.metadata["step"]
            assert at >= step
            assert latest.checkpoint["channel_values"]["messages"] == messages(thread, at)
        some = next(iter(acknowledged))
        acknowledged[some] = advance(saver, some)  # the next run resumes


def test_a_crash_that_loses_the_last_commits_does_not_mislead_who_saw_them(data_dir: Path) -> None:
    """With synchronous_commit off, which is the user's choice; a failover to a late replica does the same."""
    settings = {"synchronous_commit": "off"}
    with Checkpointer(PersistenceConfig(data_dir=data_dir, embedded_settings=settings)) as saver:
        first = store(saver, {"n": 1})
        with saver.database.connect() as conn:
            conn.execute("CHECKPOINT")
        postmaster = _postmaster(data_dir)
        (writer,) = [p for p in postmaster.children() if "walwriter" in _title(p)]
        writer.suspend()
        said = [HumanMessage("x" * 200, id=str(i)) for i in range(5)]
        lost = store(saver, {"n": 2, "messages": said}, first)
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
        assert saver.get_tuple(thread()).config == first, "the crash was to lose the last commit"
        store(saver, {"n": 3, "messages": said}, lost)
        saver.put_writes(first, [("messages", said)], "task")
        with Checkpointer(saver.database) as other:
            assert other.get_tuple(thread()).checkpoint["channel_values"] == {"n": 3, "messages": said}
            assert other.get_tuple(first).pending_writes == [("task", "messages", said)]


def test_the_writers_write(data_dir: Path) -> None:
    """The harness itself: without kills, every thread advances and nothing else is in the tables."""
    acknowledged: dict[str, tuple[int, str]] = {}
    writers = Writers(data_dir, acknowledged)
    try:
        writers.wait_for(WRITERS * 3)
    finally:
        writers.kill()
    assert len(acknowledged) == WRITERS
    _everything_is_there(data_dir, acknowledged)
    with Checkpointer(PersistenceConfig(data_dir=data_dir)) as saver:
        saver.setup()
        with saver.database.connect() as conn:
            orphans = conn.execute(
                "SELECT count(*) FROM haive.piece p WHERE NOT EXISTS"
                " (SELECT 1 FROM haive.thread t WHERE t.thread_key = p.thread_key)"
            ).fetchone()
    assert orphans == (0,)
