"""What may only read can read: a role with SELECT alone, a transaction that is read-only by default."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database
from haive_persistence.db.embedded import EmbeddedServer, files
from haive_persistence.errors import DatabaseError
from haive_persistence.store import PostgresStore
from tests.builders import store as put_checkpoint
from tests.builders import thread, until
from tests.conftest import GivenServer


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


@pytest.fixture
def standby(server: EmbeddedServer | GivenServer) -> Iterator[str]:
    """The connection string of a hot standby of the session's server; it has what was written before."""
    if not isinstance(server, EmbeddedServer):
        pytest.skip("the server is not ours to copy")
    account, tools = server._account, files.binaries(server.root, server._account)
    as_account: dict[str, Any] = {"cwd": "/", "stderr": subprocess.PIPE}
    if account is not None:
        as_account |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    directory = Path(tempfile.mkdtemp(prefix="haive-standby-"))
    if account is not None:
        os.chown(directory, account.uid, account.gid)
    data = directory / "data"
    copy = [tools / "pg_basebackup", "-d", server.dsn(), "-D", data, "-R", "-X", "stream", "-c", "fast"]
    subprocess.run(copy, check=True, **as_account)
    run = [tools / "postgres", "-D", data, "-k", directory, "-p", "5997", "-c", "listen_addresses="]
    process = subprocess.Popen([*run, "-c", "max_connections=200"], **as_account)
    given = make_conninfo(server.dsn(), host=str(directory), port=5997)

    def answers() -> bool:
        with contextlib.suppress(psycopg.Error), psycopg.connect(given):
            return True
        return False

    until(answers)
    yield given
    process.send_signal(signal.SIGINT)
    process.communicate()
    shutil.rmtree(directory)


@pytest.fixture
def written(empty_dsn: str) -> str:
    """The name of a database with a checkpoint and an item."""
    writer = Database(empty_dsn)
    put_checkpoint(Checkpointer(writer), {"n": 1})
    PostgresStore(writer).put(("a",), "k", {"v": 1}, ttl=60)
    writer.close()
    return str(conninfo_to_dict(empty_dsn)["dbname"])


def test_a_hot_standby_can_be_read(written: str, standby: str) -> None:
    with closing(Database(make_conninfo(standby, dbname=written))) as reader:
        saver, store = Checkpointer(reader), PostgresStore(reader)
        assert saver.get_tuple(thread()).checkpoint["channel_values"] == {"n": 1}
        assert store.get(("a",), "k").value == {"v": 1}
        with pytest.raises(DatabaseError, match="read-only"):
            store.put(("a",), "k", {"v": 2})
