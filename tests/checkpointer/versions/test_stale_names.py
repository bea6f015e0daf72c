"""Names that another process changes while this one lists, runs and looks up what it remembers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.thread_reader import ThreadReader
from haive_persistence.config import EncryptionConfig
from haive_persistence.db import Database
from haive_persistence.errors import InvalidInputError, NameTakenError, NotFoundError, TamperedError
from tests.builders import make_checkpoint, store, thread, values_of

NewSaver = Callable[..., Checkpointer]


def on(branch: str, checkpoint_id: str | None = None) -> Any:
    config = thread(checkpoint_id=checkpoint_id)
    config["configurable"]["branch"] = branch
    return config


def id_of(config: Any) -> str:
    return str(config["configurable"]["checkpoint_id"])


def chain(saver: Checkpointer, count: int) -> list[dict[str, Any]]:
    configs: list[dict[str, Any]] = []
    for n in range(count):
        configs.append(store(saver, {"n": n}, configs[-1] if configs else None))
    return configs


def put_as(saver: Checkpointer, id_: str, values: dict[str, Any], config: Any) -> Any:
    checkpoint: Any = {**make_checkpoint(values), "id": id_}
    metadata: Any = {"source": "loop", "step": 1, "parents": {}}
    return saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])


def test_a_branch_is_listed_after_another_process_changed_a_name(
    saver: Checkpointer, new_saver: NewSaver
) -> None:
    first, second = chain(saver, 2)
    saver.blocking.create_branch(first, "b")
    saver.blocking.create_branch(first, "other")
    assert len(list(saver.list(on("b")))) == 1
    new_saver().blocking.rename_branch("t", "other", "another")
    assert len(list(saver.list(on("b")))) == 1
    new_saver().blocking.restore(first)
    assert [id_of(t.config) for t in saver.list(thread())] == [id_of(first)]
    assert id_of(second) not in {id_of(t.config) for t in saver.list(thread())}


@pytest.mark.parametrize("filter", [None, {"source": "loop"}])
def test_a_listing_that_has_begun_goes_on_where_it_was(
    saver: Checkpointer, new_saver: NewSaver, filter: Any
) -> None:
    configs = chain(saver, 150)
    saver.blocking.create_branch(configs[140], "b")
    main, branch = saver.list(thread(), filter=filter), saver.list(on("b"), filter=filter, limit=100)
    begun = [next(main), next(branch)]
    new_saver().blocking.restore(configs[3])
    new_saver().blocking.delete_branch("t", "b")
    assert [id_of(t.config) for t in (begun[0], *main)] == [id_of(c) for c in reversed(configs)]
    assert [id_of(t.config) for t in (begun[1], *branch)] == [id_of(c) for c in reversed(configs[41:141])]


def test_what_only_the_moved_main_has_is_listed_by_a_fresh_process(
    saver: Checkpointer, new_saver: NewSaver
) -> None:
    first, _ = chain(saver, 2)
    stale = new_saver()
    assert len(list(stale.list(thread()))) == 2
    saver.blocking.restore(first)
    put = store(saver, {"n": 5}, first, mark="new")
    inner = store(saver, {"n": 6}, thread(ns="inner"))
    for reader in (new_saver(), stale):
        assert [id_of(t.config) for t in reader.list(thread(), filter={"mark": "new"})] == [id_of(put)]
    assert [id_of(t.config) for t in new_saver().list(put)] == [id_of(put)]
    assert [id_of(t.config) for t in new_saver().list(thread(ns="inner"))] == [id_of(inner)]


@pytest.mark.parametrize("same_process", [True, False])
def test_a_run_under_way_does_not_move_a_main_that_was_moved_back(
    saver: Checkpointer, new_saver: NewSaver, same_process: bool
) -> None:
    configs = chain(saver, 3)
    saver.blocking.restore(configs[0])
    running = store(saver, {"n": 10}, configs[0])
    (saver if same_process else new_saver()).blocking.undo("t")
    after = store(saver, {"n": 11}, running)
    saver.put_writes(after, [("n", 12)], "task")
    for reader in (saver, new_saver()):
        assert values_of(reader) == {"n": 2}
        assert values_of(reader, after) == {"n": 11}
        found = reader.get_tuple(after)
        assert found is not None
        assert found.parent_config is not None
        assert id_of(found.parent_config) == id_of(running)
        assert found.pending_writes == [("task", "n", 12)]


def test_nor_after_main_was_protected_for_a_while(saver: Checkpointer, new_saver: NewSaver) -> None:
    configs = chain(saver, 3)
    saver.blocking.restore(configs[0])
    running = store(saver, {"n": 10}, configs[0])
    other = new_saver()
    other.blocking.undo("t")
    other.blocking.protect_branch("t", "main")
    other.blocking.protect_branch("t", "main", protected=False)
    store(saver, {"n": 11}, running)
    assert values_of(other) == {"n": 2}
    store(saver, {"n": 3}, configs[2])
    assert values_of(other) == {"n": 3}


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("call", ["rename", "delete"])
def test_a_run_goes_on_after_its_branch_lost_its_name(
    saver: Checkpointer, new_saver: NewSaver, call: str, same_process: bool
) -> None:
    first, _ = chain(saver, 2)
    saver.blocking.create_branch(first, "b")
    running = store(saver, {"n": 10}, on("b", id_of(first)))
    versions = (saver if same_process else new_saver()).blocking
    if call == "rename":
        versions.rename_branch("t", "b", "c")
    else:
        versions.delete_branch("t", "b")
    after = store(saver, {"n": 11}, running)
    saver.put_writes(after, [("n", 12)], "task")
    assert values_of(new_saver()) == {"n": 1}
    heads = {b.name: values_of(new_saver(), b.config)["n"] for b in versions.branches("t")}
    assert heads == ({"main": 1, "c": 11} if call == "rename" else {"main": 1})
    with pytest.raises(NotFoundError):
        saver.get_tuple(after)
    with pytest.raises(NotFoundError):
        store(saver, {"n": 12}, on("never", id_of(first)))


def test_what_main_left_is_restored_by_its_id(saver: Checkpointer) -> None:
    configs = chain(saver, 4)
    saver.blocking.restore(configs[0])
    for no in (3, 2, 1):
        restored = saver.blocking.restore(id_of(configs[no]))
        assert restored.branch is None
        assert values_of(saver) == values_of(saver, restored.config) == {"n": no}
    saver.blocking.restore(saver.get_tuple(configs[3]))
    assert values_of(saver) == {"n": 3}
    assert [branch.name for branch in saver.blocking.branches("t")] == ["main"]


def test_what_a_branch_left_is_restored_by_its_id(saver: Checkpointer) -> None:
    first, second = chain(saver, 2)
    saver.blocking.create_branch(first, "b")
    one = store(saver, {"n": 10}, on("b", id_of(first)))
    two = store(saver, {"n": 11}, one)
    saver.blocking.restore(id_of(one))
    assert saver.blocking.restore(id_of(two)).branch == "b"
    assert (values_of(saver, on("b")), values_of(saver)) == ({"n": 11}, {"n": 1})
    saver.blocking.delete_branch("t", "b")
    with pytest.raises(InvalidInputError, match="on no branch any more"):
        saver.blocking.restore(id_of(one))
    assert saver.blocking.restore(on("main", id_of(second))).branch is None


def test_a_branchs_head_restored_as_main_is_shared_by_nobody(saver: Checkpointer) -> None:
    first, _ = chain(saver, 2)
    saver.blocking.create_branch(first, "b")
    head = store(saver, {"n": 10}, on("b", id_of(first)))
    saver.blocking.restore(thread(checkpoint_id=id_of(head)))
    assert values_of(saver) == {"n": 10}
    store(saver, {"n": 11}, thread(checkpoint_id=id_of(head)))
    assert (values_of(saver), values_of(saver, on("b"))) == ({"n": 11}, {"n": 10})


def test_what_main_does_not_show_can_be_branched_and_tagged_by_its_config(
    saver: Checkpointer, new_saver: NewSaver
) -> None:
    configs = chain(saver, 3)
    saver.blocking.create_branch(configs[0], "b")
    own = store(saver, {"n": 10}, on("b", id_of(configs[0])))
    plain = thread(checkpoint_id=id_of(own))
    assert values_of(saver, saver.blocking.create_branch(plain, "first").config) == {"n": 10}
    saver.blocking.restore(configs[0])
    assert values_of(saver, new_saver().blocking.create_branch(configs[2], "second").config) == {"n": 2}
    assert values_of(saver, new_saver().blocking.create_tag(configs[1], "tagged").config) == {"n": 1}


def test_the_same_id_on_two_branches_is_two_parents(saver: Checkpointer) -> None:
    one = put_as(saver, "1", {"n": 1}, thread())
    saver.blocking.create_branch(one, "a")
    saver.blocking.create_branch(one, "b")
    on_b = put_as(saver, "2", {"n": 22}, on("b", "1"))
    put_as(saver, "2", {"n": 12}, on("a", "1"))
    put_as(saver, "3", {"n": 23}, on_b)
    assert (values_of(saver, on("a")), values_of(saver, on("b"))) == ({"n": 12}, {"n": 23})


def test_of_several_that_take_a_name_at_once_all_but_one_are_told(
    saver: Checkpointer, new_saver: NewSaver
) -> None:
    first = store(saver, {"n": 1})
    savers = [saver, new_saver()]

    def take(no: int, name: str) -> bool:
        versions = savers[no % 2].blocking
        create = versions.create_branch if no < 3 else versions.create_tag
        try:
            create(first, name)
        except NameTakenError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        for round_ in range(30):
            made = list(pool.map(take, range(6), itertools.repeat(f"name {round_}")))
            assert sum(made) == 1


def test_few_names_are_remembered(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    for no in range(70):
        saver.blocking.create_branch(first, f"b{no}")
    address = saver._parts.context.thread_key("t")
    log = saver._parts.context.cache.get(address.bytes)
    assert log is not None
    assert len(log.views) <= 64
    views = log.bytes_taken()
    log.views.clear()
    assert views - log.bytes_taken() > 64 * 2 * 500


def test_prune_does_not_seal_a_parent_on_another_line(database: Database) -> None:
    sealed = Checkpointer(database.with_encryption(EncryptionConfig(encryption_key="correct horse battery")))
    first, _ = chain(sealed, 2)
    sealed.blocking.create_branch(first, "b")
    store(sealed, {"n": 10}, on("b", id_of(first)))
    with database.connect() as conn:
        change = f"UPDATE {database.schema}.checkpoint SET parent_ns_key = 5 WHERE line_no IS NOT NULL"
        conn.execute(f"{change} AND tenant_id = %s".encode(), [database.tenant])
    with pytest.raises(TamperedError):
        Checkpointer(sealed.database).prune(["t"])


def put_of_run(saver: Checkpointer, id_: str, config: Any, run_id: str) -> Any:
    """Put a checkpoint with a DeltaChannel."""
    checkpoint: Any = {**make_checkpoint({"n": 1}), "id": id_}
    checkpoint["channel_versions"]["d"] = 1
    counters = {"counters_since_delta_snapshot": {"d": 1}}
    metadata: Any = {"source": "loop", "step": 1, "parents": {}, "run_id": run_id, **counters}
    return saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])


def deltas(saver: Checkpointer, branch: str) -> list[Any]:
    history = saver.get_delta_channel_history(config=on(branch), channels=["d"])
    return [value for _, _, value in history["d"]["writes"]]


def test_runs_that_stay_keep_their_deltas_beside_the_same_id_on_another_branch(
    saver: Checkpointer, new_saver: NewSaver
) -> None:
    first = put_of_run(saver, "1", thread(), "first")
    for branch in ("a", "b"):
        saver.blocking.create_branch(first, branch)
        second = put_of_run(saver, "2", on(branch, "1"), "goes")
        saver.put_writes(second, [("d", branch)], "task")
        put_of_run(saver, "3", second, "stays")
    saver.delete_for_runs(["goes"])
    assert [deltas(new_saver(), branch) for branch in ("a", "b")] == [["a"], ["b"]]


def test_runs_that_stay_keep_their_deltas_at_a_start_of_another_run(
    saver: Checkpointer, new_saver: NewSaver
) -> None:
    first = put_of_run(saver, "1", thread(), "goes")
    saver.blocking.create_branch(first, "a")
    saver.put_writes(on("a", "1"), [("d", "of the branch")], "task")
    put_of_run(saver, "2", on("a", "1"), "stays")
    saver.delete_for_runs(["goes"])
    assert deltas(new_saver(), "a") == ["of the branch"]


def test_a_branch_is_read_while_another_process_changes_a_name(
    saver: Checkpointer, new_saver: NewSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store(saver, {"n": "one text " * 1000})
    saver.blocking.create_branch(first, "b")
    saver.blocking.create_branch(first, "other")
    usual = ThreadReader.fetch

    async def late(self: ThreadReader, *args: Any) -> None:
        monkeypatch.setattr(ThreadReader, "fetch", usual)
        new_saver().blocking.delete_branch("t", "other")
        await usual(self, *args)

    monkeypatch.setattr(ThreadReader, "fetch", late)
    assert values_of(new_saver(), on("b")) == {"n": "one text " * 1000}
    assert ThreadReader.fetch is usual


@pytest.mark.parametrize("sealed", [False, True])
def test_copies_keep_the_times_of_names(database: Database, sealed: bool) -> None:
    if sealed:
        database = database.with_encryption(EncryptionConfig(encryption_key="correct horse battery"))
    saver = Checkpointer(database)
    first = store(saver, {"n": 1})
    for name in ("z", "m", "a"):
        saver.blocking.create_branch(first, name)
    saver.blocking.create_tag(first, "tagged")
    saver.copy_thread("t", "copy")
    for read in (saver.blocking.branches, saver.blocking.tags):
        there, copied = read("t"), read("copy")
        assert [(r.name, r.created_at) for r in copied] == [(r.name, r.created_at) for r in there]
    assert [(o.id, o.at) for o in saver.blocking.log("copy")] == [
        (o.id, o.at) for o in saver.blocking.log("t")
    ]
