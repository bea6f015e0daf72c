"""What may only read can read: a role with SELECT alone, a transaction that is read-only by default."""

from __future__ import annotations

import psycopg
import pytest

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database
from haive_persistence.errors import DatabaseError
from haive_persistence.store import PostgresStore
from tests.builders import store as put_checkpoint
from tests.builders import thread


def test_a_login_that_may_only_read_can_read(empty_dsn: str, login: str) -> None:
    user = psycopg.conninfo.conninfo_to_dict(login)["user"]
    writer = Database(empty_dsn)
    saver, store = Checkpointer(writer), PostgresStore(writer)
    config = put_checkpoint(saver, {"n": 1})
    saver.put_writes(config, [("n", 2)], "task")
    store.put(("a",), "k", {"v": 1}, ttl=60)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(
            f"GRANT USAGE ON SCHEMA haive TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA haive TO {user}"
        )
    readonly = {
        "role": psycopg.conninfo.make_conninfo(
            login, dbname=psycopg.conninfo.conninfo_to_dict(empty_dsn)["dbname"]
        ),
        "transaction": psycopg.conninfo.make_conninfo(
            empty_dsn, options="-c default_transaction_read_only=on"
        ),
    }
    for how, given in readonly.items():
        reader = Database(given)
        saver, store = Checkpointer(reader), PostgresStore(reader)
        assert saver.get_tuple(thread()).checkpoint["channel_values"] == {"n": 1}, how
        assert len(list(saver.list(None))) == 1
        assert store.get(("a",), "k").value == {"v": 1}
        assert [item.key for item in store.search(("a",))] == ["k"]
        assert store.list_namespaces() == [("a",)]
        with pytest.raises(DatabaseError):
            store.put(("a",), "k", {"v": 2})
        with pytest.raises(DatabaseError):
            put_checkpoint(saver, {"n": 2})
        reader.close()
    writer.close()
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"DROP OWNED BY {user}")
