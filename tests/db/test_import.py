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
Database("postgresql://nowhere").for_tenant("a").queries("catalogue")
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


def test_import_stays_within_its_budget() -> None:
    """What is ours of it, asyncio being there already as it is with LangGraph."""
    code = "import asyncio, time; t = time.perf_counter(); import haive_persistence.db; print(time.perf_counter() - t)"
    times = sorted(float(finish(in_process(code))) for _ in range(3))
    assert times[0] < 0.1


def test_reexported_name_is_found() -> None:
    assert db.RoundTrip.__name__ == "RoundTrip"
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        db.Nonsense  # noqa: B018
