"""The Postgres that a configuration names: how to reach it, and starting it if it is the embedded one."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import error_mapping, fork_safety
from haive_persistence.errors import ConfigError, EmbeddedServerError
from haive_persistence.masking import mask_secrets

if TYPE_CHECKING:
    from haive_persistence.db.embedded import EmbeddedServer


logger = logging.getLogger("haive_persistence.embedded")

# "postgresql+psycopg://" and the like: what SQLAlchemy adds for itself.
_SQLALCHEMY = re.compile(r"\Apostgres(?:ql)?\+\w+://")

_warned = False


class Server:
    """The server that connections lead to. Shared by threads and event loops."""

    def __init__(self, config: PersistenceConfig, *, on_attach: Callable[[], None]) -> None:
        """`on_attach` is called when the embedded server was attached to."""
        self.config = config
        self._on_attach = on_attach
        self._lock = threading.RLock()
        self._attached: EmbeddedServer | None = None
        fork_safety.register(self)

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def conninfo(self) -> str:
        """The connection string, defaults included. Starts the embedded server if it is the one."""
        if self.config.connection_string is not None:
            return with_defaults(self.config.connection_string, self.config)
        try:
            return with_defaults(self._embedded().dsn(), self.config)
        except EmbeddedServerError:  # it was stopped, and cleaned up after itself
            self.ensure_running()
            return with_defaults(self._embedded().dsn(), self.config)

    def connect(self) -> psycopg.Connection[Any]:
        """An autocommit connection of its own, used to find out about a database and to migrate it.

        A server that is only starting is waited for; one that is not there is an error at once.
        """
        give_up = time.monotonic() + self.config.pool_timeout
        while True:
            try:
                return psycopg.connect(self.conninfo(), autocommit=True, prepare_threshold=None)
            except psycopg.Error as error:
                ours = self.config.connection_string is None
                hopeless = error_mapping.is_permanent(error) if ours else not error_mapping.is_starting(error)
                if hopeless or time.monotonic() > give_up:
                    raise error_mapping.unreachable(error) from error
            self.ensure_running()
            time.sleep(0.1)

    def ensure_running(self) -> None:
        """After a failure to connect: start the embedded server again if it has died."""
        if self.config.connection_string is None:
            self._embedded().ensure_running()

    def close(self) -> None:
        """Detach from the embedded server; its last user stops it."""
        with self._lock:
            attached, self._attached = self._attached, None
        if attached is not None:
            attached.close()

    def _embedded(self) -> EmbeddedServer:
        with self._lock:
            if self._attached is None:
                from haive_persistence.db import embedded

                self._attached = embedded.attach(self.config.data_dir, self.config.embedded_settings)
                self._on_attach()
                if self.config.embedded_by_none:
                    _warn_of_none(self._attached.root)
            return self._attached


def _warn_of_none(directory: Path) -> None:
    """Once: a variable that is not set must not send a service's data into a directory without a word."""
    global _warned
    if not _warned:
        _warned = True
        logger.warning(
            "connection_string=None: the data goes to the embedded Postgres in %s. If the connection string "
            "comes from a variable, set it; HAIVE_EMBEDDED=false makes this an error. Leave the argument out "
            "if you mean the embedded Postgres.",
            directory,
        )


def _check_parts(conninfo: str, given: Mapping[str, Any]) -> None:
    """Notice a password that was taken for something else: libpq would show it in its errors."""
    parts = [str(given.get(name) or "") for name in ("host", "dbname")]
    ports = str(given.get("port") or "").replace(",", "")
    if "://" in conninfo and (any("@" in part for part in parts) or (ports and not ports.isdecimal())):
        raise ConfigError(
            f"the connection string {mask_secrets(conninfo)!r} has a part that libpq takes for another: "
            "write @ as %40, / as %2F, : as %3A, ? as %3F and # as %23 in the user name and the password"
        )


def with_defaults(conninfo: str, config: PersistenceConfig) -> str:
    """`conninfo` with what it leaves open: our name, and noticing a dead peer within a minute.

    Raises ConfigError if libpq cannot read it.
    """
    conninfo = _SQLALCHEMY.sub("postgresql://", conninfo)
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise error_mapping.unreachable(error) from None  # its text quotes the connection string
    _check_parts(conninfo, given)
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
