"""Sets up sessions: settings, role and tenant.

On a connection that is ours while we hold it, settings and role are set once, and the tenant when
it changes, in the same round trip as the work. Behind a pooler that may hand every transaction to
another server connection, and on Citus, all of it is set inside every transaction.

Whoever logs in with a right to bypass row-level security works as a role without it. That role is
made when the schema is: it cannot log in, and its name says the schema and the database, since
roles belong to the whole cluster.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import sql

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import error_mapping, migrate
from haive_persistence.db.migrate import Connect
from haive_persistence.errors import ConfigError

if TYPE_CHECKING:
    from psycopg import Connection
    from typing_extensions import LiteralString

logger = logging.getLogger("haive_persistence.db")

#: As libpq counts: 15.0.
OLDEST_SERVER = 150000

#: Seconds that a second client of a pooler has to get a session.
_PROBE_S = 2.0

_PROPAGATE = b"citus.propagate_set_commands = 'local'"


class SessionPlan:
    """Statements that set up the connections of one database, and choose a tenant on them."""

    def __init__(
        self,
        settings: Sequence[bytes],
        *,
        per_transaction: bool,
        prepares_after: int | None,
        ddl_settings: Sequence[bytes] = (),
    ) -> None:
        #: Said once on a new connection.
        self.on_connect = () if per_transaction else tuple(b"SET " + s for s in settings)
        #: After how many uses a statement is prepared; None is never.
        self.prepares_after = prepares_after
        #: Said on a connection that builds an index.
        self.ddl_settings = tuple(b"SET " + s for s in ddl_settings)
        self._local = tuple(b"SET LOCAL " + s for s in settings) if per_transaction else None
        self._envelopes: dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {}

    def envelope(self, tenant: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The statements to send before and after others so that those are this tenant's.

        Without statements after them, what those before them set stays true of the connection.
        """
        found = self._envelopes.get(tenant)
        if found is None:
            if len(self._envelopes) > 10_000:
                self._envelopes.clear()
            found = self._envelopes[tenant] = self._render(tenant)
        return found

    def _render(self, tenant: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        if self._local is None:
            return (b"SET " + _tenant_is(tenant),), ()
        return (b"BEGIN", *self._local, b"SET LOCAL " + _tenant_is(tenant)), (b"COMMIT",)

    def begin(self, begin: bytes, tenant: str, *, tenant_is_set: bool) -> tuple[bytes, ...]:
        """The statements that open a transaction of this tenant's; their effect ends with it."""
        if tenant_is_set and self._local is None:
            return (begin,)
        return (begin, *(self._local or ()), b"SET LOCAL " + _tenant_is(tenant))


def _tenant_is(tenant: str) -> bytes:
    return b"haive.tenant = " + _literal(tenant)


def _literal(text: str) -> bytes:
    """Text in SQL, for a connection that speaks UTF-8, as all of ours do.

    Not psycopg's: without a connection it goes by the encoding of the one that this process opened last.
    """
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f"{'E' if quoted != text else ''}'{quoted}'".encode()


class _Login(NamedTuple):
    """Facts about the login and the server."""

    bypasses: bool
    role: str
    role_exists: bool
    role_is_ours: bool
    role_may_work: bool
    role_flaws: list[str]
    backend: int
    citus: bool


# In a schema that is not ours alone there may be others, which are not ours to give away.
_OUR_TABLES = """
SELECT t.relname FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace
WHERE s.nspname = %s AND t.relforcerowsecurity
"""

# A role's name is at most 63 bytes; the schema's at most 40.
_LOOK: LiteralString = """
WITH role AS (
    SELECT 'haive_' || {schema} || '_' || oid AS name FROM pg_database WHERE datname = current_database()
)
SELECT login.rolsuper OR login.rolbypassrls,
       role.name,
       app.oid IS NOT NULL,
       app.oid IS NOT NULL AND pg_has_role(app.oid, 'MEMBER'),
       app.oid IS NOT NULL AND has_schema_privilege(app.oid, space.oid, 'USAGE') AND NOT EXISTS (
           SELECT FROM pg_class t
           WHERE t.relnamespace = space.oid AND t.relforcerowsecurity AND t.relname <> 'schema_migration'
             AND NOT has_table_privilege(app.oid, t.oid, 'INSERT')),
       array_remove(ARRAY[
           CASE WHEN app.rolsuper THEN 'it is a superuser' END,
           CASE WHEN app.rolbypassrls THEN 'it bypasses row-level security' END,
           CASE WHEN app.rolcanlogin AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
                THEN 'it can log in' END,
           CASE WHEN EXISTS (SELECT FROM pg_roles o WHERE o.oid <> app.oid AND (o.rolsuper OR o.rolbypassrls)
                             AND pg_has_role(app.oid, o.oid, 'MEMBER'))
                THEN 'it is a member of a role that bypasses row-level security' END,
           (SELECT 'it may be used by ' || string_agg(o.rolname, ', ' ORDER BY o.rolname)
            FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.member
            WHERE m.roleid = app.oid AND NOT o.rolsuper AND NOT o.rolbypassrls)
       ], NULL),
       pg_backend_pid(),
       EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
FROM role
JOIN pg_roles login ON login.rolname = current_user
JOIN pg_namespace space ON space.nspname = {schema}
LEFT JOIN pg_roles app ON app.rolname = role.name
"""


def prepare(
    connect: Connect, config: PersistenceConfig, keep: Callable[[Connection[Any]], None] | None = None
) -> SessionPlan:
    """Bring the schema up to date, see who we are, and say how connections are to be set up.

    `keep` is given the connection that this took, if sessions are ours: it may serve as any other.
    Raises MigrationError, ConfigError, UnavailableError or another DatabaseError.
    """
    try:
        return _prepare(connect, config, keep)
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(
            f"this login may not use the schema {config.schema!r}: its owner must grant it USAGE on the "
            f"schema, and SELECT, INSERT, UPDATE and DELETE on all tables in it. ({error})"
        ) from error
    except psycopg.Error as error:
        raise error_mapping.from_driver(error) from error


def _prepare(
    connect: Connect, config: PersistenceConfig, keep: Callable[[Connection[Any]], None] | None
) -> SessionPlan:
    settings = [f"{name} = ".encode() + _literal(value) for name, value in config.session_settings().items()]
    with ExitStack() as closing_it:
        conn = closing_it.enter_context(connect())
        version, oldest = conn.info.server_version // 10000, OLDEST_SERVER // 10000
        if version < oldest:
            raise ConfigError(f"Postgres {oldest} or newer is needed, this is {version}")
        _try_settings(conn, settings)
        if migrate.is_current(conn, config.schema):
            plan = _plan(connect, conn, config, settings)
            if keep is not None and plan.on_connect:
                closing_it.pop_all()
                keep(conn)
            return plan
    migrate.migrate(connect, config.schema)  # without ours in its way: there may be few connections
    with connect() as conn:
        return _plan(connect, conn, config, settings)


def _plan(
    connect: Connect, conn: Connection[Any], config: PersistenceConfig, settings: list[bytes]
) -> SessionPlan:
    """The plan for a schema that is up to date."""
    login = _look(conn, config.schema)
    if login.bypasses:
        _check_role(login)
        if not (login.role_is_ours and login.role_may_work):
            _make_role(conn, config.schema, login)
    per_transaction = login.citus or _pooled(connect, conn, config, login)
    timeouts = ("lock_timeout", *migrate.timeouts(conn))
    # A plain SET would stay with the server's connection, which a transaction pooler gives to others.
    ddl_settings = [] if per_transaction else [*settings, *(b"%s = 0" % name.encode() for name in timeouts)]
    settings.append(migrate.SEARCH_PATH)
    if login.bypasses:
        settings.append(b'ROLE "' + login.role.encode() + b'"')
    if login.citus:
        settings.insert(0, _PROPAGATE)
    return SessionPlan(
        settings,
        per_transaction=per_transaction,
        prepares_after=config.prepares_after(pooled=per_transaction),
        ddl_settings=ddl_settings,
    )


def _try_settings(conn: Connection[Any], settings: Sequence[bytes]) -> None:
    if not settings:
        return
    try:
        conn.execute(b"BEGIN; SET LOCAL %s; ROLLBACK" % b"; SET LOCAL ".join(settings))
    except psycopg.Error as error:
        raise error_mapping.unreachable(error) from error


def _look(conn: Connection[Any], schema: str) -> _Login:
    row = migrate.ask_catalog(conn, _LOOK, schema)
    assert row is not None
    return _Login(*row)


def _check_role(login: _Login) -> None:
    """Refuse a role of this name that would not keep tenants apart, or that others may use."""
    if login.role_flaws:
        raise ConfigError(
            f"the role {login.role} cannot keep tenants apart: {'; '.join(login.role_flaws)}. "
            "Let an administrator take that from it (ALTER ROLE, REVOKE), or drop it: then it is made again."
        )


def _pooled(connect: Connect, conn: Connection[Any], config: PersistenceConfig, login: _Login) -> bool:
    """True if a session may be another one in the next transaction.

    A pooler gives its clients a process id that is not the server's. It may pool sessions or
    transactions; "auto" assumes the latter, which is always safe.
    """
    found = conn.info.backend_pid != login.backend
    if config.pooler != "auto":
        if config.pooler == "session" and found and _shares_sessions(connect, conn):
            raise ConfigError(
                'pooler="session" is set, but the pooler gives a session to other clients between '
                'transactions: set pooler="transaction" or "auto", or let the pooler pool sessions'
            )
        return config.pooler == "transaction"
    if found:
        logger.info('a connection pooler was found; if it pools sessions, pooler="session" saves some work')
    return found


def _shares_sessions(connect: Connect, conn: Connection[Any]) -> bool:
    """True if a second client is given the server's session that this one had, or has it taken away."""
    mine = _backend(conn)
    with closing(connect()) as other:
        other.pgconn.send_query(b"BEGIN; SELECT pg_backend_pid()")
        # One that pools sessions, and has no second one, lets it wait.
        if not select.select([other.pgconn.socket], [], [], _PROBE_S)[0]:
            return False
        other.pgconn.get_result()
        result = other.pgconn.get_result()
        theirs = result.get_value(0, 0) if result is not None and result.ntuples else None
        return theirs == b"%d" % mine or _backend(conn) != mine


def _backend(conn: Connection[Any]) -> int:
    row = conn.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    return int(row[0])


def _make_role(conn: Connection[Any], schema: str, login: _Login) -> None:
    role, space = sql.Identifier(login.role), sql.Identifier(schema)
    steps: list[LiteralString] = [
        "GRANT {role} TO CURRENT_USER",
        "GRANT USAGE ON SCHEMA {space} TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {role}",
        "REVOKE INSERT, UPDATE, DELETE ON {space}.schema_migration FROM {role}",
    ]
    if not login.role_exists:
        steps.insert(0, "CREATE ROLE {role} NOLOGIN NOBYPASSRLS")
    try:
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (login.role,), prepare=False)
            now = _look(conn, schema)
            _check_role(now)
            if now.role_exists and not login.role_exists:
                del steps[0]  # another process made it meanwhile
            names = conn.execute(_OUR_TABLES, (schema,), prepare=False).fetchall()
            tables = sql.SQL(", ").join(sql.Identifier(schema, name) for (name,) in names)
            for step in steps:
                conn.execute(sql.SQL(step).format(role=role, space=space, tables=tables))
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(
            "this login bypasses row-level security, so tenants would not be kept apart, and it may not "
            f"work as the role {login.role}, which would keep them apart. Connect as one without SUPERUSER "
            f"and BYPASSRLS, or let an administrator run: GRANT {login.role} TO <login>. ({error})"
        ) from error
