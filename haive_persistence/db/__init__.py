"""Connections to Postgres: the `Db` protocol, its two runners, pools, migrations, the embedded server.

An operation goes: a room awaits a method of `Db` (`protocol`), its runner (`runners`) takes a connection out
of its pool (`pools`, `pool`, `slots`), sets the tenant (`session_setup`) and makes one round trip
(`exchange`); what fails becomes one of our errors (`error_mapping`). `database` composes them. The first use
makes everything ready, migrations (`migrate`) and the embedded server (`server`, `embedded`) included.
"""

from __future__ import annotations

from haive_persistence.db.database import Database
from haive_persistence.db.hooks import RoundTrip, StatementHook
from haive_persistence.db.protocol import Db, Executor, Params, Query, Row, Statement, run_sync
from haive_persistence.db.sql import load_queries

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
