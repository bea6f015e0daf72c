"""The saver against a plain dictionary, with the caches of several processes alive at once.

Each `Checkpointer` of the machine has a cache of its own, as separate processes have. Whatever one of them
does, what any of them reads afterwards must be what the model says: a stale cache may cost a round trip,
never a wrong state. What two of them do to one thread at the same time must have the outcome of one after
the other.
"""

from __future__ import annotations

import contextlib
import copy
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.base.id import uuid6

from haive_persistence import errors
from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.db import Database

THREADS = ("a", "b")
NAMESPACES = ("", "child", "sub:1")
CHANNELS = ("messages", "files", "note")
SAVERS = 3
AT_ONCE = ("put", "put", "writes", "delete", "prune", "delete_run", "copy")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=60)
)
files = st.dictionaries(
    st.sampled_from([f"f{i}.py" for i in range(9)]), st.text(min_size=200, max_size=400), max_size=9
)
texts = st.sampled_from(["yes", "no", "hello " * 20, "x" * 300, "y" * 1200])


Threads = dict[str, dict[str, dict[str, Any]]]


class Operation(NamedTuple):
    """One call, and what it does to the model."""

    call: Callable[[], object]
    apply: Callable[[Threads], object]


class Model(RuleBasedStateMachine):
    """Threads as dictionaries: {thread: {namespace: {checkpoint id: (parent, checkpoint, metadata, writes)}}}."""

    database: Database
    config: CheckpointConfig

    def __init__(self) -> None:
        super().__init__()
        view = self.database.for_tenant(uuid.uuid4().hex)
        self.savers = [Checkpointer(view, config=self.config) for _ in range(SAVERS)]
        self.threads: Threads = {}
        self.step = 0

    # --- making checkpoints

    def _put(
        self, saver: int, thread: str, ns: str, parent: str | None, values: dict[str, Any], changed: list[str]
    ) -> str:
        operation, id_ = self._next(saver, thread, ns, parent, values, changed)
        operation.call()
        operation.apply(self.threads)
        return id_

    def _next(
        self, saver: int, thread: str, ns: str, parent: str | None, values: dict[str, Any], changed: list[str]
    ) -> tuple[Operation, str]:
        self.step += 1
        before = self._line(thread, ns).get(parent) if parent else None
        versions = dict(before["checkpoint"]["channel_versions"]) if before else {}
        for channel in changed:
            versions[channel] = self.step
        checkpoint = {
            "v": 4,
            "id": str(uuid6(clock_seq=self.step)),
            "ts": "2026-11-20T10:00:00.000001+00:00",
            "channel_values": values,
            "channel_versions": versions,
            "versions_seen": {"node": dict(versions)},
            "updated_channels": changed,
        }
        metadata = {"source": "loop", "step": self.step, "parents": {}, "run_id": f"run-{self.step % 3}"}
        kept = copy.deepcopy({"parent": parent, "checkpoint": checkpoint, "metadata": metadata, "writes": {}})
        config = {"configurable": {"thread_id": thread, "checkpoint_ns": ns}}
        if parent:
            config["configurable"]["checkpoint_id"] = parent
        new = {channel: versions[channel] for channel in changed}
        operation = Operation(
            lambda: self.savers[saver].put(config, checkpoint, metadata, new),
            lambda threads: (
                threads.setdefault(thread, {}).setdefault(ns, {}).update({checkpoint["id"]: kept})
            ),
        )
        return operation, checkpoint["id"]

    def _line(self, thread: str, ns: str) -> dict[str, Any]:
        return self.threads.get(thread, {}).get(ns, {})

    @rule(
        saver=st.integers(0, SAVERS - 1),
        thread=st.sampled_from(THREADS),
        ns=st.sampled_from(NAMESPACES),
        fork=st.booleans(),
        texts=st.lists(texts, max_size=3),
        edit=st.booleans(),
        drop=st.booleans(),
        with_ids=st.booleans(),
        new_files=files,
        note=scalars,
        read_first=st.booleans(),
        data=st.data(),
    )
    def next_checkpoint(
        self,
        saver: int,
        thread: str,
        ns: str,
        fork: bool,
        texts: list[str],
        edit: bool,
        drop: bool,
        with_ids: bool,
        new_files: dict[str, str],
        note: Any,
        read_first: bool,
        data: st.DataObject,
    ) -> None:
        """Another super-step: messages appended, one edited in place, one removed; files changed."""
        line = self._line(thread, ns)
        parent = None
        values: dict[str, Any] = {"messages": [], "files": {}, "note": None}
        if line:
            parent = data.draw(st.sampled_from(sorted(line))) if fork else max(line)
            values = copy.deepcopy(line[parent]["checkpoint"]["channel_values"])
            if read_first:  # the very objects the saver handed out, as LangGraph does it
                config = {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": parent}}
                values = self.savers[saver].get_tuple(config).checkpoint["channel_values"]
        messages = values["messages"]
        for text in texts:
            cls = HumanMessage if len(messages) % 2 else AIMessage
            messages.append(cls(text, id=str(uuid.uuid4()) if with_ids else None))
        changed = ["messages"] if texts else []
        if edit and messages:
            messages[len(messages) // 2].content += "!"
            messages[len(messages) // 2].additional_kwargs["edited"] = self.step
            changed = ["messages"]
        if drop and messages:
            del messages[0]
            changed = ["messages"]
        if not with_ids and messages:  # ids given after the message was stored without one
            for message in messages:
                message.id = message.id or str(uuid.uuid4())
            changed = ["messages"]
        if new_files:
            values["files"] = {**values["files"], **new_files}
            changed.append("files")
        values["note"] = note
        self._put(saver, thread, ns, parent, values, [*changed, "note"])

    @rule(
        saver=st.integers(0, SAVERS - 1),
        thread=st.sampled_from(THREADS),
        ns=st.sampled_from(NAMESPACES),
        task=st.sampled_from(
            ["11111111-1111-1111-1111-111111111111", "ffffffff-2222-2222-2222-222222222222", "t3"]
        ),
        values=st.lists(texts, min_size=1, max_size=3),
        special=st.booleans(),
        data=st.data(),
    )
    def pending_writes(
        self,
        saver: int,
        thread: str,
        ns: str,
        task: str,
        values: list[str],
        special: bool,
        data: st.DataObject,
    ) -> None:
        line = self._line(thread, ns)
        if not line:
            return
        id_ = data.draw(st.sampled_from(sorted(line)))
        if special:
            writes: list[tuple[str, Any]] = [("__error__", values[0])]
        else:
            writes = [("messages", [HumanMessage(v)]) for v in values]
        config = {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": id_}}
        self.savers[saver].put_writes(config, copy.deepcopy(writes), task, "path")
        kept = line[id_]["writes"]
        for at, (channel, value) in enumerate(writes):
            slot = (task, WRITES_IDX_MAP.get(channel, at))
            if special or slot not in kept:
                kept[slot] = (channel, copy.deepcopy(value))

    # --- taking away and carrying over

    @rule(saver=st.integers(0, SAVERS - 1), thread=st.sampled_from(THREADS))
    def delete_thread(self, saver: int, thread: str) -> None:
        self._do(self._delete(saver, thread))

    def _do(self, operation: Operation) -> None:
        operation.call()
        operation.apply(self.threads)

    def _delete(self, saver: int, thread: str) -> Operation:
        return Operation(
            lambda: self.savers[saver].delete_thread(thread), lambda threads: threads.pop(thread, None)
        )

    @rule(saver=st.integers(0, SAVERS - 1), thread=st.sampled_from(THREADS))
    def prune(self, saver: int, thread: str) -> None:
        self._do(self._prune(saver, thread))

    def _prune(self, saver: int, thread: str) -> Operation:
        def apply(threads: Threads) -> None:
            for line in threads.get(thread, {}).values():
                latest = max(line)
                for id_ in [i for i in line if i != latest]:
                    del line[id_]
                line[latest]["parent"] = None

        return Operation(lambda: self.savers[saver].prune([thread], strategy="keep_latest"), apply)

    @rule(saver=st.integers(0, SAVERS - 1), run=st.integers(0, 2))
    def delete_run(self, saver: int, run: int) -> None:
        self._do(self._delete_run(saver, run))

    def _delete_run(self, saver: int, run: int) -> Operation:
        def apply(threads: Threads) -> None:
            for lines in threads.values():
                for ns, line in list(lines.items()):
                    for id_ in [i for i, kept in line.items() if kept["metadata"]["run_id"] == f"run-{run}"]:
                        del line[id_]
                    for kept in line.values():
                        if kept["parent"] not in line:
                            kept["parent"] = None
                    if not line:
                        del lines[ns]

        return Operation(lambda: self.savers[saver].delete_for_runs([f"run-{run}"]), apply)

    @rule(saver=st.integers(0, SAVERS - 1), source=st.sampled_from(THREADS))
    def copy_thread(self, saver: int, source: str) -> None:
        target = "b" if source == "a" else "a"
        self.savers[saver].delete_thread(target)
        self.threads.pop(target, None)
        if self.threads.get(source):
            self.savers[saver].copy_thread(source, target)
            self.threads[target] = copy.deepcopy(self.threads[source])
        else:
            with pytest.raises(errors.NotFoundError):
                self.savers[saver].copy_thread(source, target)

    # --- two at once

    @rule(
        thread=st.sampled_from(THREADS),
        first=st.sampled_from(AT_ONCE),
        second=st.sampled_from(AT_ONCE),
        note=scalars,
    )
    def two_at_once(self, thread: str, first: str, second: str, note: Any) -> None:
        """Two savers on one thread: as if one had come after the other, whoever looks; no error."""
        operations = [self._at_once(name, saver, thread, note) for saver, name in enumerate((first, second))]
        start = Barrier(2)

        def call(operation: Operation) -> None:
            start.wait(30)
            operation.call()

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(call, operation) for operation in operations]:
                done.result(60)
        outcomes = []
        for order in (operations, operations[::-1]):
            outcomes.append(copy.deepcopy(self.threads))
            for operation in order:
                operation.apply(outcomes[-1])
        seen = [self._stored(saver) for saver in (*self.savers, self._new_saver())]
        assert all(one == seen[0] for one in seen)
        possible = [outcome for outcome in outcomes if _content(outcome) == seen[0]]
        assert possible
        self._go_on(possible[0], thread)

    def _at_once(self, name: str, saver: int, thread: str, note: Any) -> Operation:
        if name == "delete":
            return self._delete(saver, thread)
        if name == "prune":
            return self._prune(saver, thread)
        if name == "delete_run":
            return self._delete_run(saver, self.step % 3)
        if name == "copy":
            return self._copy_to_new(saver, thread)
        line = self._line(thread, "")
        parent = max(line, default=None)
        if name == "writes" and parent is not None:
            return self._write(saver, thread, parent, note)
        values = {"messages": [], "files": {}, "note": None}
        if parent is not None:
            values = copy.deepcopy(line[parent]["checkpoint"]["channel_values"])
        values["messages"] = [*values["messages"], HumanMessage("at once", id=str(uuid.uuid4()))]
        return self._next(saver, thread, "", parent, {**values, "note": note}, ["messages", "note"])[0]

    def _copy_to_new(self, saver: int, thread: str) -> Operation:
        target = f"copy-{saver}"

        def call() -> None:
            with contextlib.suppress(errors.NotFoundError):
                self.savers[saver].copy_thread(thread, target)

        def apply(threads: Threads) -> None:
            if threads.get(thread):
                threads[target] = copy.deepcopy(threads[thread])

        return Operation(call, apply)

    def _write(self, saver: int, thread: str, id_: str, note: Any) -> Operation:
        config = {"configurable": {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": id_}}

        def apply(threads: Threads) -> None:
            kept = threads.get(thread, {}).get("", {}).get(id_)
            if kept is not None:
                kept["writes"].setdefault((f"at-once-{saver}", 0), ("note", note))

        return Operation(
            lambda: self.savers[saver].put_writes(config, [("note", note)], f"at-once-{saver}", "path"), apply
        )

    def _new_saver(self) -> Checkpointer:
        return Checkpointer(self.savers[0].database, config=self.config)

    def _stored(self, saver: Checkpointer) -> Any:
        return _in_order(
            (
                found.config["configurable"]["thread_id"],
                found.config["configurable"]["checkpoint_ns"],
                found.checkpoint,
                found.metadata,
                found.pending_writes,
            )
            for found in saver.list(None)
        )

    def _go_on(self, threads: Threads, thread: str) -> None:
        """Add to what came of it; then take it away, for the next draws must not depend on who was first."""
        self.threads = threads
        self._do(self._at_once("put", 2, thread, "later"))
        assert all(self._stored(saver) == _content(self.threads) for saver in self.savers)
        for id_ in (thread, "copy-0", "copy-1"):
            self._do(self._delete(2, id_))

    # --- what must hold

    @rule(saver=st.integers(0, SAVERS - 1), thread=st.sampled_from(THREADS), ns=st.sampled_from(NAMESPACES))
    def latest_is_the_models(self, saver: int, thread: str, ns: str) -> None:
        config = {"configurable": {"thread_id": thread, "checkpoint_ns": ns}}
        found = self.savers[saver].get_tuple(config)
        line = self._line(thread, ns)
        if not line:
            assert found is None
        else:
            self._same(found, line[max(line)], max(line))
            found.checkpoint["channel_values"]["messages"].clear()  # what is handed out is the caller's own

    @rule(saver=st.integers(0, SAVERS - 1), thread=st.sampled_from(THREADS), ns=st.sampled_from(NAMESPACES))
    def history_is_the_models(self, saver: int, thread: str, ns: str) -> None:
        found = list(self.savers[saver].list({"configurable": {"thread_id": thread, "checkpoint_ns": ns}}))
        line = self._line(thread, ns)
        assert [f.config["configurable"]["checkpoint_id"] for f in found] == sorted(line, reverse=True)
        for f in found:
            self._same(f, line[f.config["configurable"]["checkpoint_id"]], f.checkpoint["id"])
            for message in f.checkpoint["channel_values"]["messages"]:
                message.content = "changed by the caller"
                message.additional_kwargs["changed"] = True

    @rule(saver=st.integers(0, SAVERS - 1), run=st.integers(0, 2))
    def filter_is_the_models(self, saver: int, run: int) -> None:
        found = {f.checkpoint["id"] for f in self.savers[saver].list(None, filter={"run_id": f"run-{run}"})}
        wanted = {
            id_
            for thread in self.threads.values()
            for line in thread.values()
            for id_, kept in line.items()
            if kept["metadata"]["run_id"] == f"run-{run}"
        }
        assert found == wanted

    def _same(self, found: Any, kept: dict[str, Any], id_: str) -> None:
        assert found is not None
        assert found.config["configurable"]["checkpoint_id"] == id_
        assert found.checkpoint == kept["checkpoint"]
        assert found.metadata == kept["metadata"]
        parent = found.parent_config and found.parent_config["configurable"]["checkpoint_id"]
        assert parent == kept["parent"]
        assert found.pending_writes == _writes(kept)


def _writes(kept: dict[str, Any]) -> list[tuple[str, str, Any]]:
    wanted = sorted((("path", task, idx), task, *write) for (task, idx), write in kept["writes"].items())
    return [(task, channel, value) for _, task, channel, value in wanted]


def _content(threads: Threads) -> Any:
    """The model as `list(None)` shows it, but for parents."""
    return _in_order(
        (thread, ns, kept["checkpoint"], kept["metadata"], _writes(kept))
        for thread, lines in threads.items()
        for ns, line in lines.items()
        for kept in line.values()
    )


def _in_order(found: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(found, key=lambda one: (one[0], one[1], one[2]["id"]))


def _run(database: Database, config: CheckpointConfig, examples: int) -> None:
    machine = type("Machine", (Model,), {"database": database, "config": config})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_in_the_clear(database: Database) -> None:
    _run(database, CheckpointConfig(), 40)


def test_sealed(database: Database) -> None:
    _run(database, CheckpointConfig(encryption_key="a passphrase of the test"), 15)


def test_without_memory(database: Database) -> None:
    """A cache that keeps nothing beyond one thread: every read is a cold one."""
    _run(database, CheckpointConfig(cache_bytes=0), 15)


@pytest.mark.slow
def test_in_the_clear_at_length(database: Database) -> None:
    _run(database, CheckpointConfig(), 400)
