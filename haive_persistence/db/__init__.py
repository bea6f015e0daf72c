"""Connections to Postgres: the `Db` protocol, its two runners, pools, migrations, the embedded server."""

from haive_persistence.db.database import Database
from haive_persistence.db.protocol import Db, Executor, Params, Query, Row, Statement, run_sync
from haive_persistence.db.sql import load_queries

__all__ = ["Database", "Db", "Executor", "Params", "Query", "Row", "Statement", "load_queries", "run_sync"]
