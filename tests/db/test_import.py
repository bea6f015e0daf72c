"""Importing costs little: the driver comes with the first use."""

from __future__ import annotations

import os

import pytest

from haive_persistence import db
from tests.db.helpers import finish, in_process


def test_driver_and_binaries_wait_for_the_first_use() -> None:
    code = """
import sys
import haive_persistence.config, haive_persistence.db
from haive_persistence.db import Database
Database("postgresql://nowhere").for_tenant("a").queries("schema_lint")
print([name for name in ("psycopg", "psycopg_pool", "psutil", "platformdirs", "cryptography") if name in sys.modules])
"""
    assert finish(in_process(code)) == "[]\n"


def test_savers_and_stores_are_made_without_the_driver() -> None:
    code = """
import sys
from haive_persistence import Checkpointer, PostgresStore
Checkpointer(PostgresStore("postgresql://nowhere")).for_tenant("a")
print([name for name in ("psycopg", "psutil", "platformdirs", "cryptography") if name in sys.modules])
"""
    assert finish(in_process(code)) == "[]\n"


def test_importing_loads_the_standard_library_alone() -> None:
    code = """
import sys
import haive_persistence.db
print(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"haive_persistence"}))
"""
    before = finish(in_process(code.replace("import haive_persistence.db\n", "")))
    assert finish(in_process(code)) == before  # what the interpreter itself loads at its start


def test_reexported_name_is_found() -> None:
    assert db.RoundTrip.__name__ == "RoundTrip"
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        db.Nonsense  # noqa: B018


@pytest.mark.parametrize(
    "use",
    [
        "Database(dsn).setup()",
        "Database(dsn).connect()",
        "Checkpointer(dsn).get_tuple({'configurable': {'thread_id': 't'}})",
        "asyncio.run(Checkpointer(dsn).aget_tuple({'configurable': {'thread_id': 't'}}))",
        "PostgresStore(dsn).get(('n',), 'k')",
        "PostgresStore(dsn, index={'dims': 2, 'embed': list}).search(('n',), query='q')",
    ],
)
def test_psycopg_without_a_libpq_says_what_to_install(use: str) -> None:
    code = f"""
import asyncio
from haive_persistence import Checkpointer, Database, PostgresStore
from haive_persistence.errors import ConfigError
dsn = "postgresql://nowhere"
try:
    {use}
except ConfigError as error:
    print(error)
"""
    environment = {**os.environ, "PSYCOPG_IMPL": "c"}  # which is not installed
    assert "pip install 'haive-persistence[binary]'" in finish(in_process(code, env=environment))
