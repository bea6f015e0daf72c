"""`echo_sql`: every round trip in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from haive_persistence.db.runners import RoundTrip

logger = logging.getLogger("haive_persistence.sql")


def echo(trip: RoundTrip) -> None:
    """Log a round trip: its statements without their parameters, its time and its rows."""
    logger.info("%.2f ms, %d rows: %s", trip.milliseconds, trip.rows, "; ".join(trip.statements))
