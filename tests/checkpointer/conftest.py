"""Savers for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database
from tests.builders import RoundTrips, make_checkpoint, store, thread

__all__ = ["RoundTrips", "make_checkpoint", "store", "thread"]


@pytest.fixture
def saver(database: Database) -> Checkpointer:
    return Checkpointer(database)


@pytest.fixture
def new_saver(database: Database) -> Callable[..., Checkpointer]:
    """Another saver of the same tenant that remembers nothing: what another process would have."""
    return lambda **options: Checkpointer(database, **options)


@pytest.fixture
def round_trips(trips: RoundTrips) -> RoundTrips:
    return trips
