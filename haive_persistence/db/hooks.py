"""Hooks that are called after every round trip of a database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

logger = logging.getLogger("haive_persistence.sql")


class RoundTrip(NamedTuple):
    """Statements that went to the server at once, and what came back."""

    #: The SQL texts, those about tenant and transaction included.
    statements: tuple[str, ...]
    #: From sending the first byte to having the last, waiting for a connection not included.
    milliseconds: float
    #: Rows received.
    rows: int


#: Called after every round trip, in the thread or task that made it.
StatementHook = Callable[[RoundTrip], None]


def log_round_trip(trip: RoundTrip) -> None:
    """`echo_sql`: log the statements of a round trip without their parameters, its time and its rows."""
    logger.info("%.2f ms, %d rows: %s", trip.milliseconds, trip.rows, "; ".join(trip.statements))
