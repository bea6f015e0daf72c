"""Branches and tags by name: what is created, listed, renamed, protected and deleted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.config import EncryptionConfig
from haive_persistence.db import Database
from haive_persistence.errors import (
    ConflictError,
    InvalidIdentifierError,
    InvalidInputError,
    NameTakenError,
    NotFoundError,
    ProtectedError,
    TamperedError,
)
from tests.builders import RoundTrips, make_checkpoint, store, thread, values_of


def on(branch: str, thread_id: str = "t", **more: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, "branch": branch, **more}}


def id_of(config: Any) -> str:
    return str(config["configurable"]["checkpoint_id"])


def not_stored(config: Any) -> str:
    """An id like a checkpoint's, of none."""
    id_ = id_of(config)
    return id_[:-1] + ("0" if id_[-1] != "0" else "1")


def test_a_branch_shows_its_start_until_something_is_put_on_it(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    second = store(saver, {"n": 2}, first)
    branch = saver.blocking.create_branch(first, "other", {"purpose": "a test"})
    assert (branch.name, branch.thread_id, branch.base) == ("other", "t", id_of(first))
    assert branch.metadata == {"purpose": "a test"}
    assert values_of(saver, branch.config) == {"n": 1}
    put = store(saver, {"n": 3}, on("other", checkpoint_id=id_of(first), checkpoint_ns=""))
    assert put["configurable"]["branch"] == "other"
    assert values_of(saver, branch.config) == {"n": 3}
    assert values_of(saver) == {"n": 2}
    assert [id_of(t.config) for t in saver.list(branch.config)] == [id_of(put), id_of(first)]
    assert [id_of(t.config) for t in saver.list(thread())] == [id_of(second), id_of(first)]


def test_configs_carry_the_branch_on(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    saver.blocking.create_branch(first, "other")
    store(saver, {"n": 2}, on("other", checkpoint_id=id_of(first)))
    newest, inherited = saver.list(on("other"))
    for found in (newest, inherited):
        assert found.config["configurable"]["branch"] == "other"
        assert saver.get_tuple(found.config) == found
    assert newest.parent_config == inherited.config
    assert "branch" not in newest.metadata


@pytest.mark.parametrize(
    "name",
    [
        lambda first: first,
        lambda first: id_of(first),
        lambda first: Checkpointer,  # refused
    ],
)
def test_a_checkpoint_is_named_by_config_or_id(saver: Checkpointer, name: Callable[[Any], Any]) -> None:
    first = store(saver, {"n": 1})
    named = name(first)
    if named is Checkpointer:
        with pytest.raises(InvalidInputError, match="name a checkpoint by its config"):
            saver.blocking.create_branch(named, "b")
        return
    assert values_of(saver, saver.blocking.create_branch(named, "b").config) == {"n": 1}


def test_a_checkpoint_is_named_by_records_branches_and_tags(saver: Checkpointer) -> None:
    blocking = saver.blocking
    first = store(saver, {"n": 1})
    store(saver, {"n": 2}, first)
    tag = blocking.create_tag(first, "v1")
    one = blocking.create_branch(tag, "one")
    two = blocking.create_branch("v1", "two", thread_id="t")
    three = blocking.create_branch("one", "three", thread_id="t")
    four = blocking.create_branch(saver.get_tuple(one.config), "four")
    for branch in (one, two, three, four):
        assert values_of(saver, branch.config) == {"n": 1}
    assert values_of(saver, blocking.create_branch("main", "five", thread_id="t").config) == {"n": 2}


def test_an_id_that_several_threads_have_needs_the_thread(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    saver.copy_thread("t", "copy")
    with pytest.raises(InvalidInputError, match=r"in several threads .*give thread_id="):
        saver.blocking.create_branch(id_of(first), "b")
    assert saver.blocking.create_branch(id_of(first), "b", thread_id="copy").thread_id == "copy"


def test_what_is_not_there_is_said(saver: Checkpointer) -> None:
    blocking = saver.blocking
    with pytest.raises(NotFoundError, match="no thread"):
        saver.get_tuple(on("none"))
    config = store(saver, {"n": 1})
    for call in (
        lambda: saver.get_tuple(on("none")),
        lambda: list(saver.list(on("none"))),
        lambda: store(saver, {"n": 2}, on("none")),
        lambda: saver.put_writes(on("none", checkpoint_id=id_of(config)), [("n", 1)], "task"),
        lambda: saver.get_delta_channel_history(config=on("none"), channels=["n"]),
        lambda: blocking.create_branch("none", "b", thread_id="t"),
        lambda: blocking.create_branch("none", "b"),
        lambda: blocking.create_branch(thread("no thread"), "b"),
        lambda: blocking.create_branch(thread(checkpoint_id=not_stored(config)), "b"),
        lambda: blocking.rename_branch("t", "none", "b"),
        lambda: blocking.delete_branch("t", "none"),
        lambda: blocking.protect_branch("t", "none"),
        lambda: blocking.delete_tag("t", "none"),
        lambda: blocking.create_tag("none", "b"),
        lambda: blocking.branches("no thread"),
        lambda: blocking.tags("no thread"),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert saver.get_tuple(thread()) is not None


def test_names_are_unique_and_those_of_tags_are_never_used_again(saver: Checkpointer) -> None:
    config = store(saver, {"n": 1})
    blocking = saver.blocking
    blocking.create_branch(config, "b")
    blocking.create_tag(config, "v1")
    for create in (blocking.create_branch, blocking.create_tag):
        for name in ("b", "v1"):
            with pytest.raises(NameTakenError):
                create(config, name)
    blocking.delete_tag("t", "v1")
    assert blocking.tags("t") == []
    with pytest.raises(NameTakenError, match="had a tag of it"):
        blocking.create_tag(config, "v1")
    blocking.delete_branch("t", "b")
    assert [b.name for b in blocking.branches("t")] == ["main"]
    assert blocking.create_branch(config, "b").name == "b"


@pytest.mark.parametrize("name", ["", "main", "@1", " b", "b\n", "x" * 201, 7, None, "\x00", "\ud800"])
def test_names_are_checked(saver: Checkpointer, name: Any) -> None:
    config = store(saver, {"n": 1})
    saver.blocking.create_branch(config, "b")
    for call in (
        lambda: saver.blocking.create_branch(config, name),
        lambda: saver.blocking.create_tag(config, name),
        lambda: saver.blocking.rename_branch("t", "b", name),
    ):
        with pytest.raises(InvalidIdentifierError):
            call()


@pytest.mark.parametrize("branch", ["@", "@x", "@-1", "@0x1", "@01", "@" + "f" * 20, 7, ""])
def test_a_branch_in_a_config_is_checked(saver: Checkpointer, branch: Any) -> None:
    store(saver, {"n": 1})
    with pytest.raises(InvalidIdentifierError):
        saver.get_tuple(on(branch))


def test_metadata_is_json(saver: Checkpointer) -> None:
    config = store(saver, {"n": 1})
    with pytest.raises(InvalidInputError, match="metadata cannot be stored"):
        saver.blocking.create_branch(config, "b", {"n": object()})
    assert len(saver.blocking.branches("t")) == 1


def test_main_is_neither_renamed_nor_deleted(saver: Checkpointer) -> None:
    store(saver, {"n": 1})
    with pytest.raises(InvalidInputError, match="the thread itself"):
        saver.blocking.rename_branch("t", "main", "b")
    with pytest.raises(InvalidInputError, match="the thread itself"):
        saver.blocking.delete_branch("t", "main")


def test_a_renamed_branch_is_found_by_its_new_name_only(
    saver: Checkpointer, new_saver: Callable[..., Checkpointer]
) -> None:
    first = store(saver, {"n": 1})
    saver.blocking.create_branch(first, "old")
    store(saver, {"n": 2}, on("old", checkpoint_id=id_of(first)))
    renamed = new_saver().blocking.rename_branch("t", "old", "new")
    assert renamed.name == "new"
    assert values_of(saver, on("new")) == {"n": 2}
    with pytest.raises(NotFoundError):  # this process had known the old name
        saver.get_tuple(on("old"))
    with pytest.raises(NotFoundError):
        store(saver, {"n": 3}, on("old", checkpoint_id=id_of(first)))


def test_a_protected_branch_takes_nothing(
    saver: Checkpointer, new_saver: Callable[..., Checkpointer]
) -> None:
    first = store(saver, {"n": 1})
    saver.blocking.create_branch(first, "b")
    for name, config in (("b", on("b", checkpoint_id=id_of(first))), ("main", first)):
        assert new_saver().blocking.protect_branch("t", name).is_protected
        with pytest.raises(ProtectedError):
            store(saver, {"n": 2}, config)
        with pytest.raises(ProtectedError):
            saver.put_writes(config, [("n", 2)], "task")
        assert {b.name: b.is_protected for b in saver.blocking.branches("t")}[name]
        assert values_of(saver, config) == {"n": 1}
        if name != "main":
            with pytest.raises(ProtectedError):
                saver.blocking.delete_branch("t", name)
        new_saver().blocking.protect_branch("t", name, False)
        store(saver, {"n": 2}, config)


def test_the_log_says_who_did_what(saver: Checkpointer) -> None:
    config = store(saver, {"n": 1})
    blocking = saver.blocking
    blocking.create_branch(config, "b", by="ann", why="to try")
    blocking.create_tag(config, "v1", by="bob")
    blocking.rename_branch("t", "b", "c")
    blocking.protect_branch("t", "c")
    blocking.protect_branch("t", "c", False)
    blocking.delete_branch("t", "c", why="done")
    blocking.delete_tag("t", "v1")
    log = blocking.log("t")
    assert [(o.kind, o.name, o.by, o.why) for o in log] == [
        ("create_branch", "b", "ann", "to try"),
        ("create_tag", "v1", "bob", None),
        ("rename_branch", "b", None, None),
        ("protect_branch", "c", None, None),
        ("protect_branch", "c", None, None),
        ("delete_branch", "c", None, "done"),
        ("delete_tag", "v1", None, None),
    ]
    assert log[0].details == {"base": id_of(config)}
    assert [o.at for o in log] == sorted(o.at for o in log)


async def test_the_calls_are_asynchronous_too(saver: Checkpointer) -> None:
    checkpoint = make_checkpoint({"n": 1})
    metadata: Any = {"source": "loop", "step": 1, "parents": {}}
    config = await saver.aput(thread(), checkpoint, metadata, checkpoint["channel_versions"])  # type: ignore[arg-type]
    branch = await saver.create_branch(config["configurable"]["checkpoint_id"], "b")
    found = await saver.aget_tuple(branch.config)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"n": 1}
    assert [t.config async for t in saver.alist(branch.config)] == [found.config]
    assert (await saver.rename_branch("t", "b", "c")).name == "c"
    assert (await saver.protect_branch("t", "c")).is_protected
    await saver.protect_branch("t", "c", False)
    tag = await saver.create_tag("c", "v1", thread_id="t")
    assert await saver.tags("t") == [tag]
    await saver.delete_tag("t", "v1")
    await saver.delete_branch("t", "c")
    assert [b.name for b in await saver.branches("t")] == ["main"]
    assert len(await saver.log("t")) == 7


def test_a_branch_takes_one_round_trip_and_few_bytes(
    saver: Checkpointer, database: Database, round_trips: RoundTrips
) -> None:
    first = store(saver, {"n": 1})
    assert round_trips.of(lambda: saver.blocking.create_branch(first, "b")) == 1
    with database.connect() as conn:
        query = f"SELECT sum(pg_column_size(r)) FROM {database.schema}.ref r WHERE tenant_id = %s"
        (size,) = conn.execute(query.encode(), [database.tenant]).fetchone() or (None,)
    assert size <= 300


def test_tenants_do_not_see_each_others_branches(saver: Checkpointer) -> None:
    config = store(saver, {"n": 1})
    saver.blocking.create_branch(config, "b")
    other = saver.for_tenant("other")
    store(other, {"n": 2})
    with pytest.raises(NotFoundError):
        other.get_tuple(on("b"))
    with pytest.raises(NotFoundError):
        other.blocking.create_branch(id_of(config), "b")


def test_a_sealed_branch_is_not_given_another_start(database: Database) -> None:
    sealed = Checkpointer(database.with_encryption(EncryptionConfig(encryption_key="correct horse battery")))
    first = store(sealed, {"n": 1})
    second = store(sealed, {"n": 2}, first)
    sealed.blocking.create_branch(first, "secret name", {"secret": "purpose"})
    sealed.blocking.create_tag(second, "secret tag", why="secret reason")
    schema = database.schema
    mine = f"FROM {schema}.ref WHERE tenant_id = '{database.tenant}'"
    changes = {
        "checkpoint_id": f"(SELECT checkpoint_id {mine} AND is_tag)",
        "is_protected": "NOT is_protected",
        "is_passed": "NOT is_passed",
        "base_writes": "'{7}'",
        "cut_id": "'x'",
        "base_line": "7",
        "home_line": "7",
    }
    with database.connect() as conn:
        for table in ("ref", "operation"):
            query = f"SELECT r::text FROM {schema}.{table} r WHERE tenant_id = %s"
            rows = conn.execute(query.encode(), [database.tenant]).fetchall()
            assert len(rows) == 2
            assert b"secret".hex() not in str(rows)
        conn.execute(f"CREATE TABLE public.kept AS SELECT * {mine}".encode())
        for column, value in changes.items():
            change = f"UPDATE {schema}.ref SET {column} = {value} WHERE NOT is_tag AND tenant_id = %s"
            conn.execute(change.encode(), [database.tenant])
            fresh = Checkpointer(sealed.database)
            with pytest.raises(TamperedError):
                fresh.get_tuple(on("secret name"))
            with pytest.raises(TamperedError):
                fresh.blocking.branches("t")
            conn.execute(f"DELETE {mine}".encode())
            conn.execute(f"INSERT INTO {schema}.ref SELECT * FROM public.kept".encode())
    assert values_of(Checkpointer(sealed.database), on("secret name")) == {"n": 1}


def test_states_are_compared_by_name_id_and_as_dicts(saver: Checkpointer) -> None:
    first = store(saver, {"text": "one two", "n": 1})
    second = store(saver, {"text": "one three", "n": 1}, first)
    saver.blocking.create_branch(first, "old")
    compare = saver.blocking.compare
    assert not compare(first, "old", thread_id="t")
    diff = compare(id_of(first), id_of(second))
    assert diff.to_json_patch() == [{"op": "replace", "path": "/text", "value": "one three"}]
    assert list(compare(second, {"text": "one three", "n": 2}).summary) == ["n"]
    assert not compare(first, second, False).has_details
    with pytest.raises(NotFoundError):
        compare(first, "none", thread_id="t")


def test_restore_reports_tool_calls_and_repeats_none(saver: Checkpointer) -> None:
    call = {"name": "pay", "args": {"amount": 5}, "id": "c1", "type": "tool_call"}
    asked = [HumanMessage("pay", id="1"), AIMessage("", id="2", tool_calls=[call])]
    first = store(saver, {"messages": asked[:1]})
    second = store(saver, {"messages": asked}, first)
    store(saver, {"messages": [*asked, ToolMessage("done", id="3", tool_call_id="c1")]}, second)
    (made,) = saver.blocking.restore(first).side_effects
    assert (made.name, made.args, made.is_answered) == ("pay", {"amount": 5}, True)
    assert values_of(saver) == {"messages": asked[:1]}
    (answered,) = saver.blocking.restore(second, thread_id="t").side_effects or [None]
    assert answered is None


def test_a_run_that_is_under_way_does_not_move_a_restored_branch(
    saver: Checkpointer, new_saver: Callable[..., Checkpointer]
) -> None:
    first = store(saver, {"n": 1})
    second = store(saver, {"n": 2}, first)
    other = new_saver()
    third = store(other, {"n": 3}, second)  # a run of another process
    restored = saver.blocking.restore(first, by="ann")
    assert (restored["n"], restored.config) == (1, {"configurable": {"thread_id": "t"}})
    store(other, {"n": 4}, third)
    other.put_writes(third, [("n", 5)], "task")
    assert values_of(saver) == values_of(other) == {"n": 1}
    assert [t.checkpoint["channel_values"]["n"] for t in saver.list(thread())] == [1]
    saver.blocking.undo("t")
    assert values_of(saver) == {"n": 3}
    restore, undo = saver.blocking.log("t")
    assert (restore.kind, restore.name, restore.by) == ("restore", "main", "ann")
    assert (undo.kind, undo.name, undo.details["operation"]) == ("undo", "main", restore.id)


def test_main_restored_to_the_head_of_a_branch_moves_by_itself(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    store(saver, {"n": 2}, first)
    saver.blocking.create_branch(first, "b")
    third = store(saver, {"n": 3}, on("b", checkpoint_id=id_of(first)))
    saver.blocking.restore(
        {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": id_of(third)}}
    )
    assert values_of(saver) == {"n": 3}
    store(saver, {"n": 4}, thread(checkpoint_id=id_of(third)))
    assert (values_of(saver), values_of(saver, on("b"))) == ({"n": 4}, {"n": 3})
    saver.blocking.undo("t")
    assert values_of(saver) == {"n": 2}


def test_lines_without_a_name_are_listed_and_read(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    store(saver, {"n": 2}, first)
    saver.blocking.create_branch(first, "b")
    store(saver, {"n": 3}, on("b", checkpoint_id=id_of(first)))
    saver.blocking.restore(first)
    saver.blocking.delete_branch("t", "b")
    assert [b.name for b in saver.blocking.branches("t")] == ["main"]
    main, *unnamed = saver.blocking.branches("t", unnamed=True)
    assert values_of(saver, main.config) == {"n": 1}
    assert [values_of(saver, b.config)["n"] for b in unnamed] == [2, 3]
    assert next(b.name for b in unnamed) == "@0"
    again = saver.blocking.create_branch(unnamed[1], "b")
    assert values_of(saver, again.config) == {"n": 3}


def test_each_operation_is_undone_and_that_too(saver: Checkpointer) -> None:
    config = store(saver, {"n": 1})
    blocking = saver.blocking

    def names() -> list[str]:
        protected = [f"{b.name}!" if b.is_protected else b.name for b in blocking.branches("t")[1:]]
        return [*protected, *(tag.name for tag in blocking.tags("t"))]

    steps: list[tuple[Callable[[], Any], list[str]]] = [
        (lambda: blocking.create_branch(config, "b"), ["b"]),
        (lambda: blocking.rename_branch("t", "b", "c"), ["c"]),
        (lambda: blocking.protect_branch("t", "c"), ["c!"]),
        (lambda: blocking.protect_branch("t", "c", False), ["c"]),
        (lambda: blocking.create_tag(config, "v"), ["c", "v"]),
        (lambda: blocking.delete_branch("t", "c"), ["v"]),
        (lambda: blocking.delete_tag("t", "v"), []),
    ]
    before: list[str] = []
    for step, after in steps:
        step()
        assert names() == after
        blocking.undo("t")
        assert names() == before
        blocking.undo("t")
        assert names() == after
        before = after
    assert len(blocking.log("t")) == 3 * len(steps)


def test_an_earlier_operation_is_undone_unless_more_was_done_to_it(saver: Checkpointer) -> None:
    config = store(saver, {"n": 1})
    blocking = saver.blocking
    blocking.create_branch(config, "b")
    blocking.create_branch(config, "c")
    blocking.rename_branch("t", "c", "d")
    first, second, _ = blocking.log("t")
    with pytest.raises(ConflictError, match="undo that first"):
        blocking.undo("t", second)
    blocking.undo("t", first.id)
    assert [b.name for b in blocking.branches("t")] == ["main", "d"]
    with pytest.raises(NotFoundError, match="no operation"):
        blocking.undo("t", "none")
    blocking.create_branch(config, "b")
    with pytest.raises(NameTakenError):
        blocking.undo("t", blocking.log("t")[3])


def test_what_cannot_be_restored_is_said(saver: Checkpointer) -> None:
    first = store(saver, {"n": 1})
    store(saver, {"n": 2}, first)
    blocking = saver.blocking
    blocking.create_branch(first, "b")
    with pytest.raises(InvalidInputError, match="by its id or config"):
        blocking.restore("b", thread_id="t")
    with pytest.raises(NotFoundError):
        blocking.restore(thread(checkpoint_id=not_stored(first)))
    with pytest.raises(NotFoundError, match="no operation to undo"):
        blocking.undo(store(saver, {"n": 1}, thread("other"))["configurable"]["thread_id"])
    blocking.protect_branch("t", "main")
    with pytest.raises(ProtectedError):
        blocking.restore(first)


async def test_restore_undo_and_compare_are_asynchronous_too(saver: Checkpointer) -> None:
    checkpoint = make_checkpoint({"n": 1})
    metadata: Any = {"source": "loop", "step": 1, "parents": {}}
    first: Any = await saver.aput(thread(), checkpoint, metadata, checkpoint["channel_versions"])  # type: ignore[arg-type]
    checkpoint = make_checkpoint({"n": 2})
    second = await saver.aput(first, checkpoint, metadata, checkpoint["channel_versions"])  # type: ignore[arg-type]
    assert (await saver.restore(first, validate_schema=True))["n"] == 1
    assert await saver.compare(second, "main", thread_id="t")
    assert (await saver.undo("t")).kind == "undo"
    assert not await saver.compare(second, "main", thread_id="t")


def test_a_copy_onto_a_thread_leaves_its_head(saver: Checkpointer) -> None:
    mine = store(saver, {"n": 2}, thread("u"))
    first = store(saver, {"n": 1}, thread("s"))
    store(saver, {"n": 3}, first)
    saver.blocking.restore(first)
    store(saver, {"n": 5}, thread("s", checkpoint_id=id_of(first)))
    saver.copy_thread("s", "u")
    saver.copy_thread("s", "new")
    assert values_of(saver, mine) == {"n": 2}
    assert saver.blocking.branches("u")[0].base is None
    assert values_of(saver, thread("new")) == {"n": 5}
