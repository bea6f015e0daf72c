"""What a connection is told before it works for a tenant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, Connection, sql

from haive_persistence.config import PersistenceConfig
from haive_persistence.db.migrate import migrate, migrations, pending, read_applied
from haive_persistence.errors import ConfigError

_INSPECT = """
SELECT r.rolsuper OR r.rolbypassrls, d.oid::bigint,
       EXISTS (SELECT FROM pg_roles a WHERE a.rolname = %(role)s || d.oid AND pg_has_role(a.oid, 'MEMBER'))
FROM pg_roles r, pg_database d
WHERE r.rolname = current_user AND d.datname = current_database()
"""


@dataclass(frozen=True)
class SessionPlan:
    """How connections of one database are set up and how a tenant is chosen on them."""

    settings: tuple[tuple[str, str], ...]
    role: str | None
    per_transaction: bool

    def _statements(self) -> list[str]:
        said = [f"SET {name} = {_literal(value)}" for name, value in self.settings]
        if self.role is not None:
            said.append(f'SET ROLE "{self.role}"')
        return said

    def configure(self, conn: Connection[Any]) -> None:
        if not self.per_transaction and (said := self._statements()):
            conn.execute("; ".join(said))

    async def aconfigure(self, conn: AsyncConnection[Any]) -> None:
        if not self.per_transaction and (said := self._statements()):
            await conn.execute("; ".join(said))

    def preamble(self, tenant: str) -> list[str]:
        """What makes the statements after it this tenant's."""
        if not self.per_transaction:
            return [f"SET haive.tenant = {_literal(tenant)}"]
        return [
            "BEGIN",
            *(s.replace("SET ", "SET LOCAL ", 1) for s in self._statements()),
            f"SET LOCAL haive.tenant = {_literal(tenant)}",
        ]


def _literal(value: str) -> str:
    return sql.Literal(value).as_string(None)


def prepare(connect: Callable[[], Connection[tuple[Any, ...]]], config: PersistenceConfig) -> SessionPlan:
    """Migrate if need be, find out who we are, and say how connections are to be set up."""
    with connect() as conn:
        if pending(read_applied(conn, config.schema), migrations()):
            migrate(connect, config.schema)
        prefix = f"haive_{config.schema}_"
        bypasses, database, there = conn.execute(_INSPECT, {"role": prefix}).fetchone() or (False, 0, False)
        role = f"{prefix}{database}" if bypasses else None
        if role is not None:
            _grant(conn, config.schema, role, create=not there)
    return SessionPlan(tuple(config.session_settings().items()), role, config.pooler == "transaction")


def _grant(conn: Connection[Any], schema: str, role: str, *, create: bool) -> None:
    import psycopg

    try:
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(5471001)")
            if create and not conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                conn.execute(f'CREATE ROLE "{role}" NOLOGIN NOBYPASSRLS')
            conn.execute(f'GRANT "{role}" TO CURRENT_USER')
            conn.execute(f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}"')
            conn.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{role}"')
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError("this login bypasses row-level security; connect as a role that does not") from error
