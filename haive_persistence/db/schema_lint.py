"""Reads the catalog of a schema and says what is wrong with it: isolation of tenants, fitness for Citus."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from psycopg import Connection

from haive_persistence.db.sql import load_queries

#: How Postgres prints the only condition a policy may have.
TENANT_RULE = "(tenant_id = NULLIF(current_setting('haive.tenant'::text, true), ''::text))"

# Citus refuses what could differ between the copies of a row in the action of an upsert.
_UPSERT = re.compile(
    r"\bDO\s+UPDATE\s+SET\b(.*?)(?:\bRETURNING\b|\)\s*,|\)\s*SELECT\b|\Z)", re.IGNORECASE | re.DOTALL
)
_VOLATILE = re.compile(
    r"\b(now\(|clock_timestamp\(|statement_timestamp\(|current_timestamp|current_date|localtimestamp|random\(|gen_random_uuid\()",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """One thing that is wrong."""

    object: str
    problem: str


def isolation_findings(conn: Connection[Any], schema: str, role: str | None = None) -> list[Finding]:
    """Every way in which the rows of one tenant could be reached by another; empty when there is none.

    `role` is the one tenants are served as, if it is not the login.
    """
    queries = load_queries("schema_lint")
    given = {"schema": f'"{schema}"', "rule": TENANT_RULE, "role": role}
    names = ("isolation_tables", "isolation_policies", "isolation_detours")
    rows = [row for name in names for row in conn.execute(queries[name].encode(), given, prepare=False)]
    return sorted(Finding(*row) for row in rows)


def distribution_findings(conn: Connection[Any], schema: str) -> list[Finding]:
    """Everything that Citus would refuse about the tables of a schema."""
    query = load_queries("schema_lint")["distribution"]
    return sorted(
        Finding(*row) for row in conn.execute(query.encode(), {"schema": f'"{schema}"'}, prepare=False)
    )


def upsert_findings(queries: dict[str, str]) -> list[Finding]:
    """Upserts that Citus would refuse, because their action calls a function with varying results."""
    return [
        Finding(name, f"{volatile[1]} in ON CONFLICT DO UPDATE: take the value from `excluded`")
        for name, text in queries.items()
        for action in _UPSERT.finditer(text)
        if (volatile := _VOLATILE.search(action[1]))
    ]
