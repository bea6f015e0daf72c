"""The saver as an object: made, closed, copied, and seen by tenants."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from haive_persistence import errors
from haive_persistence.checkpointer import Checkpointer, parts
from tests.builders import store, thread, values_of


def test_list_limits_before_and_filters(saver: Checkpointer) -> None:
    configs = [thread()]
    for step in range(150):
        configs.append(
            store(saver, {"n": step}, configs[-1], source="loop" if step % 2 else "input", score=step * 1.0)
        )
    assert [t.checkpoint["channel_values"]["n"] for t in saver.list(thread(), limit=3)] == [149, 148, 147]
    assert len(list(saver.list(thread()))) == 150
    assert [t.checkpoint["channel_values"]["n"] for t in saver.list(thread(), before=configs[3])] == [1, 0]
    assert len(list(saver.list(None, filter={"source": "loop"}))) == 75
    assert [
        t.checkpoint["channel_values"]["n"] for t in saver.list(thread(), filter={"source": "loop"}, limit=2)
    ] == [149, 147]
    assert len(list(saver.list(None, filter={"score": 9}))) == 1
    assert list(saver.list(None, filter={"source' OR 1=1 --": "x"})) == []
    assert list(saver.list(thread(), limit=0)) == []


def test_the_runs_scalars_are_in_the_metadata(saver: Checkpointer) -> None:
    """As in LangGraph's own savers: what the call has set first, and no writes."""
    config = thread()
    config["configurable"] |= {"user": "ann", "__pregel_task_id": "x", "tools": ["no scalar"]}
    run = {"user": "bob", "score": 1.5, "writes": "many", "step": 7}
    store(saver, {"a": 1}, {**config, "metadata": run}, step=3)
    (found,) = saver.list(None, filter={"user": "bob", "score": 1.5, "step": 3})
    assert not {"writes", "__pregel_task_id", "tools", "thread_id"} & found.metadata.keys()


def test_iterators_are_taken_for_sequences(saver: Checkpointer) -> None:
    for id_ in ("one", "two"):
        config = store(saver, {"a": 1}, thread(id_), run_id=f"run of {id_}")
        saver.put_writes(config, iter([("a", 2), ("b", 3)]), "")  # type: ignore[arg-type]
        assert [write[1:] for write in saver.get_tuple(config).pending_writes] == [("a", 2), ("b", 3)]  # type: ignore[union-attr]
    assert history_lengths(saver, config, iter(["a", "b"])) == {"a": 0, "b": 0}
    saver.delete_for_runs(iter(["run of one"]))  # type: ignore[arg-type]
    saver.prune(iter(["two"]), strategy="delete")  # type: ignore[arg-type]
    assert list(saver.list(None)) == []


def history_lengths(saver: Checkpointer, config: Any, channels: Any) -> dict[str, int]:
    found = saver.get_delta_channel_history(config=config, channels=channels)
    return {channel: len(history["writes"]) for channel, history in found.items()}


def test_a_saver_may_serve_any_number_of_tenants(
    saver: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It remembers those used last; the others are as they were when they come again."""
    monkeypatch.setattr(parts, "_MAX_TENANTS", 3)
    tenants = [saver.for_tenant(f"{saver.database.tenant} {number}") for number in range(8)]
    for _ in range(2):
        for number, view in enumerate(tenants):
            config = store(view, {"a": number})
            assert values_of(view, config) == {"a": number}
    assert [len(list(view.list(None))) for view in tenants] == [2] * 8
    assert len(saver._shared_now()._by_tenant) <= 3


def test_reads_of_one_thread_need_no_other(saver: Checkpointer) -> None:
    store(saver, {"a": 1}, thread("x"))
    store(saver, {"a": 2}, thread("xy"))
    store(saver, {"a": 3}, thread("x", ns="sub"))
    assert values_of(saver, thread("x")) == {"a": 1}
    assert len(list(saver.list({"configurable": {"thread_id": "x"}}))) == 2


def test_wrong_arguments_are_told_apart(saver: Checkpointer) -> None:
    with pytest.raises(errors.InvalidInputError):
        saver.prune("t")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError):
        saver.prune(["t"], strategy="keep_everything")
    with pytest.raises(errors.InvalidInputError):
        saver.delete_for_runs("run")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError):
        saver.copy_thread("t", "t")
    with pytest.raises(errors.ConfigError):
        Checkpointer(42)  # type: ignore[arg-type]


def test_threads_of_other_tenants_do_not_exist(saver: Checkpointer) -> None:
    store(saver, {"secret": 1})
    other = saver.for_tenant("somebody else")
    assert other.get_tuple(thread()) is None
    assert list(other.list(None)) == []
    other.delete_thread("t")
    other.prune(["t"], strategy="delete")
    other.delete_for_runs(["r"])
    with pytest.raises(errors.NotFoundError):
        other.copy_thread("t", "mine")
    assert other.get_tuple(thread("mine")) is None
    assert values_of(saver) == {"secret": 1}


def test_from_conn_string_and_setup(dsn: str) -> None:
    with Checkpointer.from_conn_string(dsn) as saver:
        saver.setup()
        saver.setup()
        config = store(saver, {"a": 1}, thread("drop-in"))
        assert values_of(saver, config) == {"a": 1}

    async def asynchronous() -> None:
        async with Checkpointer.from_conn_string(dsn, pipeline=True) as saver:
            await saver.setup()
            found = await saver.aget_tuple(thread("drop-in"))
            assert found is not None

    asyncio.run(asynchronous())


def test_versions_go_on_from_an_imported_thread(saver: Checkpointer) -> None:
    assert saver.get_next_version(None, None) == 1
    assert saver.get_next_version(41, None) == 42
    imported = "00000000000000000000000000000003.0.2440990277421464"
    following = saver.get_next_version(imported, None)
    assert following > imported
    assert following.startswith("00000000000000000000000000000004.")


def test_with_allowlist_keeps_the_database_and_hides_decoded_objects(saver: Checkpointer) -> None:
    store(saver, {"messages": [HumanMessage("x" * 100, id="m")]})
    saver.get_tuple(thread())
    clone = saver.with_allowlist([("some.module", "Type")])
    assert values_of(clone)["messages"][0].content == "x" * 100
    assert clone.database is saver.database
