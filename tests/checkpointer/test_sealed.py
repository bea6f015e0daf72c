"""Encryption: nothing the user made is readable in the database; nothing changed there is returned."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from psycopg.conninfo import conninfo_to_dict

from haive_persistence import errors
from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.codec import Codec
from haive_persistence.db import Database
from haive_persistence.db.embedded import EmbeddedServer
from tests.builders import store, thread
from tests.conftest import GivenServer

KEY = secrets.token_bytes(32)
SECRET = "SECRET-4711"
TABLES = {"piece": "payload", "checkpoint": "body", "pending_write": "payload"}


@pytest.fixture
def sealed(database: Database) -> Checkpointer:
    return Checkpointer(database, config=CheckpointConfig(encryption_key=KEY))


def fill(saver: Checkpointer, thread_id: str = "t") -> dict[str, Any]:
    config = store(
        saver,
        {
            "messages": [
                HumanMessage(f"{SECRET} in a message", id="m1"),
                AIMessage(f"{SECRET} again " * 20, id="m2"),
            ],
            "ssn": SECRET,
            "short": 4711,
            "nested": {SECRET: [SECRET]},
        },
        thread(thread_id),
        customer=SECRET,
        run_id=f"run-{SECRET}",
    )
    saver.put_writes(config, [("messages", [HumanMessage(SECRET)]), ("ssn", SECRET)], "task")
    return config


def reader(database: Database, **config: Any) -> Checkpointer:
    """Another process."""
    return Checkpointer(database, config=CheckpointConfig(**config))


@pytest.mark.parametrize("how", ["TRUNCATE", "DELETE FROM", "TEMPLATE"])
def test_a_backup_restored_under_processes_that_run(
    empty_dsn: str, server: EmbeddedServer | GivenServer, how: str
) -> None:
    """They remember pieces, and a data key, that the backup does not have."""
    database = Database(empty_dsn)
    running = Checkpointer(database, config=CheckpointConfig(encryption_key=KEY))
    other_tenant = running.for_tenant("second")
    said = [HumanMessage("x" * 200, id=str(i)) for i in range(5)]
    first = store(running, {"n": 1})
    tables = ("thread", "piece", "checkpoint", "pending_write", "data_key")

    def go_on() -> None:
        store(running, {"n": 2, "messages": said}, first)
        store(other_tenant, {"n": 1})

    if how == "TEMPLATE":
        name = conninfo_to_dict(empty_dsn)["dbname"]
        hang_up = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s"
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(hang_up, (name,))  # a template may have no sessions
            admin.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}".encode())
            go_on()
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            admin.execute(f"ALTER DATABASE {name}_backup RENAME TO {name}".encode())
    else:
        with psycopg.connect(empty_dsn, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA backup")
            for table in tables:
                admin.execute(f"CREATE TABLE backup.{table} AS TABLE haive.{table}".encode())
            go_on()
            for table in tables:
                admin.execute(f"{how} haive.{table}; INSERT INTO haive.{table} TABLE backup.{table}".encode())
    store(running, {"n": 3, "messages": said}, first)
    store(other_tenant, {"n": 3, "messages": said}, thread("new"))
    store(other_tenant, {"n": 3, "messages": said})
    for tenant, thread_id in (("default", "t"), ("second", "t"), ("second", "new")):
        fresh = reader(database.for_tenant(tenant), encryption_key=KEY)
        found = fresh.get_tuple(thread(thread_id))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"n": 3, "messages": said}
    database.close()


def test_nothing_is_readable_and_everything_comes_back(
    sealed: Checkpointer, database: Database, admin: psycopg.Connection[Any]
) -> None:
    fill(sealed)
    store(sealed, {"ssn": SECRET}, thread(ns=f"{SECRET}:task"))
    for table, column in TABLES.items():
        for row in admin.execute(f"SELECT to_jsonb(t) - '{column}', t.{column} FROM haive.{table} t"):  # type: ignore[arg-type]
            assert SECRET not in json.dumps(row[0])
            assert SECRET.encode() not in row[1]
    for table in ("thread", "data_key"):
        for (row,) in admin.execute(f"SELECT to_jsonb(t) FROM haive.{table} t"):  # type: ignore[arg-type]
            assert SECRET not in json.dumps(row)
    found = reader(database, encryption_key=KEY).get_tuple(thread())
    assert found is not None
    assert found.checkpoint["channel_values"]["ssn"] == SECRET
    assert found.metadata["customer"] == SECRET  # type: ignore[typeddict-item]
    assert found.pending_writes is not None
    assert found.pending_writes[1][2] == SECRET
    assert [t.checkpoint["id"] for t in sealed.list(None, filter={"customer": SECRET})] == [
        found.checkpoint["id"]
    ]
    sealed.delete_for_runs([f"run-{SECRET}"])
    assert sealed.get_tuple(thread()) is None


@pytest.mark.parametrize("table", TABLES)
def test_a_flipped_bit_is_an_error(
    sealed: Checkpointer, database: Database, admin: psycopg.Connection[Any], table: str
) -> None:
    fill(sealed)
    column = TABLES[table]
    admin.execute(
        f"UPDATE haive.{table} SET {column} = set_byte({column}, octet_length({column}) - 3,"  # type: ignore[arg-type]
        f" get_byte({column}, octet_length({column}) - 3) # 1) WHERE tenant_id = %s",
        (database.tenant,),
    )
    with pytest.raises(errors.TamperedError):
        reader(database, encryption_key=KEY).get_tuple(thread())
    assert (
        admin.execute(
            f"SELECT count(*) FROM haive.{table} WHERE tenant_id = %s", (database.tenant,)
        ).fetchone()[0]
        > 0
    )  # type: ignore[arg-type,index]


@pytest.mark.parametrize("table", TABLES)
def test_bytes_moved_from_another_row_are_an_error(
    sealed: Checkpointer, database: Database, admin: psycopg.Connection[Any], table: str
) -> None:
    """The incumbent accepts another thread's ciphertext copied over a row."""
    fill(sealed)
    fill(sealed, "other")
    column = TABLES[table]
    keys = {"piece": "piece_no", "checkpoint": "checkpoint_id", "pending_write": "write_no"}[table]
    admin.execute(
        f"UPDATE haive.{table} a SET {column} = b.{column} FROM haive.{table} b, haive.thread ta, haive.thread tb"  # type: ignore[arg-type]
        f" WHERE ta.thread_key = a.thread_key AND tb.thread_key = b.thread_key"
        f" AND ta.thread_id = 't' AND tb.thread_id = 'other' AND ta.tenant_id = %s AND tb.tenant_id = %s"
        f" AND (SELECT count(*) FROM haive.{table} x WHERE x.thread_key = a.thread_key AND x.{keys} < a.{keys})"
        f" = (SELECT count(*) FROM haive.{table} x WHERE x.thread_key = b.thread_key AND x.{keys} < b.{keys})",
        (database.tenant, database.tenant),
    )
    with pytest.raises(errors.TamperedError):
        reader(database, encryption_key=KEY).get_tuple(thread())


@pytest.mark.parametrize("table", TABLES)
def test_plaintext_in_a_sealed_thread_is_refused(
    sealed: Checkpointer, database: Database, admin: psycopg.Connection[Any], table: str
) -> None:
    """The incumbent accepts a forged plaintext row."""
    fill(sealed)
    column = TABLES[table]
    admin.execute(
        f"UPDATE haive.{table} SET {column} = %s WHERE tenant_id = %s",  # type: ignore[arg-type]
        (Codec().pack(b"\x91\x01", b""), database.tenant),
    )
    with pytest.raises(errors.PlaintextRefusedError):
        reader(database, encryption_key=KEY).get_tuple(thread())


def test_a_wrong_key_and_no_key_are_errors_and_delete_nothing(
    sealed: Checkpointer, database: Database
) -> None:
    config = fill(sealed)
    with pytest.raises(errors.WrongKeyError):
        reader(database, encryption_key=secrets.token_bytes(32)).get_tuple(thread())
    with pytest.raises(errors.WrongKeyError):
        reader(database).get_tuple(thread())
    with pytest.raises(errors.WrongKeyError):
        store(reader(database, encryption_key="another passphrase"), {"a": 1}, config)
    assert sealed.get_tuple(thread()) is not None


def test_rotating_the_master_key_rewrites_no_data(
    sealed: Checkpointer, database: Database, admin: psycopg.Connection[Any]
) -> None:
    fill(sealed)
    query = "SELECT md5(string_agg(payload, '' ORDER BY piece_no)) FROM haive.piece WHERE tenant_id = %s"
    before = admin.execute(query, (database.tenant,)).fetchone()
    new = secrets.token_bytes(32)
    both = reader(database, encryption_key=new, older_encryption_keys=(KEY,))
    assert both.get_tuple(thread()) is not None  # before the rotation both keys are needed
    assert both.rotate_encryption_key() == 1
    assert both.rotate_encryption_key() == 0
    only_new = reader(database, encryption_key=new)
    assert only_new.get_tuple(thread()) is not None
    assert admin.execute(query, (database.tenant,)).fetchone() == before
    with pytest.raises(errors.WrongKeyError):
        reader(database, encryption_key=KEY).get_tuple(thread())


async def test_keys_are_administered_without_blocking(sealed: Checkpointer, database: Database) -> None:
    fill(sealed)
    both = reader(database, encryption_key="another passphrase", older_encryption_keys=(KEY,))
    assert await both.arotate_encryption_key() == 1
    assert await both.anew_data_key() == 2
    assert reader(database, encryption_key="another passphrase").get_tuple(thread()) is not None
    with pytest.raises(errors.ConfigError, match="encryption_key"):
        await Checkpointer(database.for_tenant("clear")).anew_data_key()


def test_several_data_keys_are_readable(sealed: Checkpointer, database: Database) -> None:
    config = fill(sealed)
    assert sealed.new_data_key() == 2
    store(sealed, {"messages": [HumanMessage("sealed with the second key")]}, config)
    found = list(reader(database, encryption_key=KEY).list(thread()))
    assert found[0].checkpoint["channel_values"]["messages"][0].content == "sealed with the second key"
    assert found[1].checkpoint["channel_values"]["ssn"] == SECRET


@pytest.mark.parametrize(
    "read",
    [
        lambda saver: saver.get_tuple(thread()),
        lambda saver: list(saver.list(thread())),
        lambda saver: saver.prune(["t"]),
        lambda saver: saver.copy_thread("t", "copy"),
        lambda saver: saver.get_delta_channel_history(config=thread(), channels=["ssn"]),
    ],
    ids=["get_tuple", "list", "prune", "copy_thread", "delta history"],
)
def test_processes_that_run_learn_of_a_new_data_key(
    sealed: Checkpointer, database: Database, read: Callable[[Checkpointer], Any]
) -> None:
    config = fill(sealed)
    other = reader(database, encryption_key=KEY)
    assert other.get_tuple(config) is not None
    sealed.new_data_key()
    config = store(sealed, {"ssn": SECRET * 2, "messages": [HumanMessage("new " * 40)]}, config)
    read(other)
    assert other.get_tuple(thread()).checkpoint["channel_values"]["ssn"] == SECRET * 2  # type: ignore[union-attr]
    store(other, {"ssn": "back"}, config)
    assert sealed.get_tuple(thread()).checkpoint["channel_values"]["ssn"] == "back"  # type: ignore[union-attr]


def test_a_copied_thread_is_sealed_for_its_own_rows(sealed: Checkpointer, database: Database) -> None:
    fill(sealed)
    sealed.copy_thread("t", "copy")
    copy, original = (reader(database, encryption_key=KEY).get_tuple(thread(t)) for t in ("copy", "t"))
    assert copy is not None
    assert original is not None
    assert copy.checkpoint == original.checkpoint
    assert copy.pending_writes == original.pending_writes


def test_a_parent_link_cannot_be_bent(
    sealed: Checkpointer, database: Database, admin: psycopg.Connection[Any]
) -> None:
    configs = [fill(sealed)]
    for i in range(3):
        configs.append(store(sealed, {"n": i}, configs[-1]))
    admin.execute(
        "UPDATE haive.checkpoint c SET parent_id = (SELECT checkpoint_id FROM haive.checkpoint x"
        " WHERE x.thread_key = c.thread_key ORDER BY 1 LIMIT 1) WHERE tenant_id = %s AND parent_id IS NOT NULL",
        (database.tenant,),
    )
    with pytest.raises(errors.TamperedError):
        reader(database, encryption_key=KEY).get_tuple(thread())


def test_keys_are_not_shown(sealed: Checkpointer) -> None:
    assert KEY.hex() not in repr(sealed.config)
    assert str(KEY) not in repr(sealed.config)


def test_wrong_settings() -> None:
    for wrong in (
        {"compression": "lzma"},
        {"cache_bytes": -1},
        {"older_encryption_keys": ("k",)},
        {"encryption_key": ""},
    ):
        with pytest.raises(errors.ConfigError):
            CheckpointConfig(**wrong)  # type: ignore[arg-type]
