"""State persistence for AI agents on Postgres.

The public names; importing them costs nothing until they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CheckpointConfig",
    "Checkpointer",
    "Database",
    "EncryptionConfig",
    "PersistenceConfig",
    "PersistenceError",
    "PostgresStore",
    "SafeSerializer",
    "__version__",
]

_HOMES = {
    "CheckpointConfig": "haive_persistence.checkpointer",
    "Checkpointer": "haive_persistence.checkpointer",
    "Database": "haive_persistence.db",
    "EncryptionConfig": "haive_persistence.config",
    "PersistenceConfig": "haive_persistence.config",
    "PersistenceError": "haive_persistence.errors",
    "SafeSerializer": "haive_persistence.codec",
    "PostgresStore": "haive_persistence.store",
}

if TYPE_CHECKING:
    from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
    from haive_persistence.codec import SafeSerializer
    from haive_persistence.config import EncryptionConfig, PersistenceConfig
    from haive_persistence.db import Database
    from haive_persistence.errors import PersistenceError
    from haive_persistence.store import PostgresStore


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
