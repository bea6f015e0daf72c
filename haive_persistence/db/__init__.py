"""Connections to Postgres: the `Db` protocol, its two runners, pools, migrations, the embedded server.

An operation goes: a room awaits a method of `Db` (`protocol`), its runner (`runners`) takes a
connection out of its pool (`pool`), says whose rows are meant (`session`) and makes one round trip
(`wire`); what fails becomes one of our errors (`failures`). `database` ties them together and makes
everything ready on first use, migrations (`migrate`) and the embedded server included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haive_persistence.db.database import Database, StatementHook
from haive_persistence.db.protocol import Db, Executor, Params, Query, Row, Statement, run_sync
from haive_persistence.db.sql import load_queries

if TYPE_CHECKING:
    from haive_persistence.db.runners import RoundTrip

__all__ = [
    "Database",
    "Db",
    "Executor",
    "Params",
    "Query",
    "RoundTrip",
    "Row",
    "Statement",
    "StatementHook",
    "load_queries",
    "run_sync",
]


def __getattr__(name: str) -> object:
    if name == "RoundTrip":  # its module imports psycopg, which waits for the first use
        from haive_persistence.db.runners import RoundTrip

        return RoundTrip
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
