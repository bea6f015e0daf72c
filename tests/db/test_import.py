"""Importing costs little: the driver comes with the first use."""

from __future__ import annotations

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
