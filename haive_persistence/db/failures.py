"""The one place where the driver's errors become ours."""

from __future__ import annotations

import psycopg

from haive_persistence.errors import (
    AmbiguousCommitError,
    ConflictError,
    DatabaseError,
    TimedOutError,
    UnavailableError,
)

_CONFLICT = {"23505", "23P01", "40001", "40P01"}
_TIMEOUT = {"57014", "55P03", "25P03", "57P05"}


def translate(error: psycopg.Error) -> DatabaseError:
    """Ours for the driver's, with its SQLSTATE."""
    state = error.sqlstate
    text = str(error).strip()
    if state in _CONFLICT:
        return ConflictError(text, sqlstate=state)
    if state in _TIMEOUT:
        return TimedOutError(text, sqlstate=state)
    if isinstance(error, psycopg.OperationalError):
        if state is None:
            return AmbiguousCommitError(text, sqlstate=state)
        return UnavailableError(text, sqlstate=state)
    return DatabaseError(text, sqlstate=state)
