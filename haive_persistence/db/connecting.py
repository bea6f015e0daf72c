"""Connection strings, and connections outside a pool."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import failures

if TYPE_CHECKING:
    from haive_persistence.db.database import Core


def with_defaults(conninfo: str, config: PersistenceConfig) -> str:
    """`conninfo` with what it leaves open: our name, and noticing a dead peer within a minute.

    Raises ConfigError if libpq cannot read it.
    """
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise failures.unreachable(error) from error
    defaults: dict[str, str | int] = {
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # keepalives say nothing while sent data is not acknowledged
        "fallback_application_name": "haive-persistence",
    }
    if "PGCONNECT_TIMEOUT" not in os.environ:
        defaults["connect_timeout"] = max(2, min(30, round(config.pool_timeout)))
    return make_conninfo(
        conninfo, **{k: v for k, v in defaults.items() if k not in given}, client_encoding="UTF8"
    )


def connect_directly(core: Core) -> psycopg.Connection[Any]:
    """An autocommit connection of its own, used to find out about a database and to migrate it.

    A server that is only starting is waited for; one that is not there is an error at once.
    """
    give_up = time.monotonic() + core.config.pool_timeout
    while True:
        try:
            return psycopg.connect(core.conninfo(), autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            ours = core.config.connection_string is None
            hopeless = failures.is_permanent(error) if ours else not failures.is_starting(error)
            if hopeless or time.monotonic() > give_up:
                raise failures.unreachable(error) from error
        core.revive()
        time.sleep(0.1)
