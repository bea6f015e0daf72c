"""The one place where the driver's errors become ours, with words that say what to do."""

from __future__ import annotations

import re
from enum import Enum

import psycopg

from haive_persistence.errors import (
    AmbiguousCommitError,
    ConfigError,
    ConflictError,
    DatabaseError,
    LoginError,
    NoDatabaseError,
    PersistenceError,
    TimedOutError,
    TooManyConnectionsError,
    UnavailableError,
)


class CommitState(Enum):
    """Whether an exchange that failed was committed."""

    NOT_RUN = "nothing happened, and a fresh connection may well succeed"
    REFUSED = "the server said no; nothing was committed"
    UNKNOWN = "the connection died; it may have been committed"


class ExchangeFailure(Exception):
    """The failure of an exchange, and what is known of its effects."""

    def __init__(self, error: psycopg.Error, fate: CommitState) -> None:
        super().__init__(error)
        self.error = error
        self.state = fate


# One statement took too long, or waited too long for a lock: https://www.postgresql.org/docs/current/errcodes-appendix.html
_ONE_TIMED_OUT = ("57014", "55P03")


def affects_whole_batch(error: Exception) -> bool:
    """Whether what went wrong with several calls that were sent together would with each of them alone.

    A server that is gone is gone for all, and asking one by one would wait as often.
    """
    if isinstance(error, TimedOutError):
        return error.sqlstate not in _ONE_TIMED_OUT
    return isinstance(error, (UnavailableError, AmbiguousCommitError))


# SQLSTATE, or its first characters: the class it becomes and what the caller can do about it.
# The longest prefix wins. https://www.postgresql.org/docs/current/errcodes-appendix.html
_MEANING: dict[str, tuple[type[DatabaseError], str]] = {
    "08": (UnavailableError, "The connection failed; try again."),
    "0A": (DatabaseError, ""),
    "22": (DatabaseError, "A value does not fit its column or function."),
    "23": (DatabaseError, "The rows would contradict a constraint; nothing was committed."),
    "23505": (ConflictError, "Another row has this key already; nothing was committed."),
    "23P01": (ConflictError, "Another row stands in the way; nothing was committed."),
    "25006": (
        DatabaseError,
        "This is a read-only server: connect to the primary (target_session_attrs=read-write).",
    ),
    "25P02": (DatabaseError, "An earlier statement of this transaction failed; run the transaction again."),
    "25P03": (TimedOutError, "The transaction was idle for longer than idle_in_transaction_session_timeout."),
    "25P04": (TimedOutError, "The transaction took longer than the server's transaction_timeout."),
    "26000": (DatabaseError, 'A pooler may be in between: set pooler="transaction".'),
    "28": (LoginError, "Check the user name and the password in the connection string."),
    "3D000": (NoDatabaseError, "Create the database, or correct its name in the connection string."),
    "40": (ConflictError, "Another transaction was in the way; nothing was committed, run it again."),
    "42501": (DatabaseError, "The role lacks a right, or the row belongs to another tenant."),
    "42P01": (DatabaseError, "The schema is not set up or was changed by hand: run setup()."),
    "42P05": (DatabaseError, 'A pooler may be in between: set pooler="transaction".'),
    "53": (UnavailableError, "The server is short of something (connections, memory or disk)."),
    "53300": (TooManyConnectionsError, "Close others, raise the server's limit, or lower pool_size."),
    "53100": (DatabaseError, "The server's disk is full; nothing was committed."),
    "54": (DatabaseError, "A value is larger than Postgres can take; nothing was committed."),
    "55P03": (TimedOutError, "A lock was not free within lock_timeout; nothing was committed, try again."),
    "57": (UnavailableError, "The server is stopping or restarting; try again."),
    "57014": (TimedOutError, "The statement was cancelled: see statement_timeout. Nothing was committed."),
    "57P05": (UnavailableError, "The connection was idle for too long; try again."),
    "58": (DatabaseError, "The server has trouble with its files: see its log."),
    "XX": (DatabaseError, "The server met an internal error: see its log."),
}

# libpq gives no SQLSTATE when it cannot connect, so these are read from the text; the first that fits.
_REFUSALS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"too many clients|too many connections|connection slots|no more connections allowed|"
            r"max client connections",
            re.IGNORECASE,
        ),
        "53300",
    ),
    (re.compile(r"FATAL: .*database \".*\" does not exist|no such database", re.IGNORECASE), "3D000"),
    (
        re.compile(
            r"authentication failed|no password supplied|role \".*\" does not exist|no pg_hba\.conf entry|"
            r"not permitted to log in|no such user|certificate|does not support SSL|SSL negotiation",
            re.IGNORECASE,
        ),
        "28000",
    ),
)
_PERMANENT = re.compile(
    r"authentication failed|does not exist|no password supplied|no pg_hba\.conf entry|certificate|"
    r"not permitted to log in|unsupported|no such user|does not support SSL|SSL negotiation",
    re.IGNORECASE,
)
_CHECK = "Check that the server runs and that the connection string is right."
_STARTING = re.compile(
    r"starting up|shutting down|recovery|not accepting connections|not yet accepting|"
    r"too many clients|too many connections|connection slots|closed the connection unexpectedly",
    re.IGNORECASE,
)


def translate(failed: ExchangeFailure) -> DatabaseError:
    """Ours for an exchange that failed for good; chain it to `failed.error`."""
    error = failed.error
    if failed.state is CommitState.UNKNOWN:
        return AmbiguousCommitError(
            f"the connection was lost before the answer came, so the work may have been committed or not. "
            f"Read it back before you try again. ({_first_line(error)})",
            sqlstate=error.sqlstate,
        )
    return from_driver(error)


def from_driver(error: psycopg.Error) -> DatabaseError:
    """Ours for an error of psycopg's about something that was not committed."""
    state = error.sqlstate
    if state is None:
        return UnavailableError(f"the database cannot be reached: {_first_line(error)}", sqlstate=None)
    kind, advice = next((_MEANING[state[:n]] for n in (5, 2) if state[:n] in _MEANING), (DatabaseError, ""))
    text = f"{str(error).strip()}\n{advice}" if advice else str(error).strip()
    return kind(text, sqlstate=state)


def constraint(error: BaseException) -> str | None:
    """The name of the constraint that `error` is about, if it is about one."""
    cause = error.__cause__ if isinstance(error, PersistenceError) else error
    return cause.diag.constraint_name if isinstance(cause, psycopg.Error) else None


def unreachable(error: psycopg.Error) -> PersistenceError:
    """Ours for a connection that could not be opened or set up."""
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return ConfigError(
            f"the connection string is not one libpq accepts: {_without_quotes(error)}; "
            'write "postgresql://user:password@host:5432/dbname" or "host=… dbname=… user=… password=…"'
        )
    if error.sqlstate is not None:
        if error.sqlstate.startswith("22") or error.sqlstate in ("42704", "42501"):
            return ConfigError(f"a setting of the configuration was refused: {_first_line(error)}")
        return from_driver(error)
    state = _refusal(error)
    kind, advice = _MEANING.get(state) or _MEANING[state[:2]] if state else (UnavailableError, _CHECK)
    return kind(f"the database cannot be reached: {_first_line(error)}\n{advice}", sqlstate=state)


def is_refused_for_number(error: psycopg.Error) -> bool:
    """True if the server, the role or a pooler allows no more connections now."""
    return (error.sqlstate or _refusal(error)) == "53300"


def _refusal(error: psycopg.Error) -> str | None:
    """The SQLSTATE of a failure to connect, read from its text."""
    text = str(error)
    return next((state for pattern, state in _REFUSALS if pattern.search(text)), None)


def is_permanent(error: psycopg.Error) -> bool:
    """True if connecting again cannot help, to a server that was reached before."""
    if error.sqlstate is not None:
        return error.sqlstate[:2] not in ("08", "53", "57")
    return not isinstance(error, psycopg.OperationalError) or bool(_PERMANENT.search(str(error)))


def is_starting(error: psycopg.Error) -> bool:
    """True if the server is there but not ready; it has not been reached before."""
    return bool(_STARTING.search(str(error)))


def _without_quotes(error: BaseException) -> str:
    """The words of libpq on a connection string, without what they quote of it: that may be a password."""
    text = _first_line(error).replace('"="', "an equals sign")
    return re.sub(r'".*"', '"…"', text, flags=re.DOTALL)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
