"""What the tests of the database share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from haive_persistence.db import Query, Statement
from tests.builders import until

__all__ = [
    "ADD",
    "ALL",
    "COUNT",
    "MOMENTS",
    "ONE",
    "SLEEP",
    "WHO",
    "Proxy",
    "add",
    "finish",
    "in_process",
    "reach",
    "until",
]

ONE = Query("SELECT %(a)s::text, %(b)s::int8")
WHO = Query("SELECT current_setting('haive.tenant', true), current_user::text, pg_backend_pid()")
ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
SLEEP = Query("SELECT pg_sleep(%(seconds)s)")
ADD = Query("INSERT INTO haive.note (tenant_id, id, body) VALUES (%(tenant)s, %(id)s, %(body)s)")
ALL = Query("SELECT tenant_id, id, body FROM haive.note ORDER BY id")
COUNT = Query("SELECT count(*) FROM haive.note")


def add(tenant: str, id: str, body: str = "text") -> Statement:
    """An insert of a note."""
    return Statement(ADD, {"tenant": tenant, "id": id, "body": body})


def in_process(code: str, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
    """Python code in a process of its own, warnings being errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def finish(process: subprocess.Popen[str], timeout: float = 60) -> str:
    """What the process printed; fails if it failed or had anything to complain about."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    assert not err, err
    return out


#: Moments to cancel tasks at: after so many turns of the event loop, or (None) when the server is at work.
MOMENTS = (0, 1, 2, 4, 8, None)


async def reach(moment: int | None, admin: Connection[Any], asleep: int) -> None:
    """Return at the moment; the server is at work when `asleep` connections are in pg_sleep."""
    for _ in range(moment or 0):
        await asyncio.sleep(0)
    if moment is None:
        await asyncio.to_thread(until, lambda: admin.execute(ASLEEP).fetchone()[0] >= asleep)


class Proxy:
    """Passes bytes on, until told to cut."""

    def __init__(self, dsn: str) -> None:
        self._given = conninfo_to_dict(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(
            dsn, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable"
        )
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        #: Called with what a client sends; True cuts the connection after passing it on.
        self.cut_after: Callable[[bytes], bool] = lambda _: False
        #: Called with what a client sends; True cuts the connection instead of passing it on.
        self.cut_before: Callable[[bytes], bool] = lambda _: False
        self.sent: list[bytes] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def go_away(self) -> None:
        """Stop listening, and hang up on everybody."""
        with contextlib.suppress(OSError):
            self._port = self._listener.getsockname()[1]
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def come_back(self) -> None:
        """Listen again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self.__enter__()

    def cut(self) -> None:
        """Hang up on everybody."""
        for pair in self._pairs:
            self._hang_up(pair)
        self._pairs.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = self._connect()
                pair = (client, server)
                self._pairs.append(pair)
                threading.Thread(target=self._upstream, args=pair, daemon=True).start()
                threading.Thread(target=self._downstream, args=pair, daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = str(self._given["host"]), int(self._given["port"])
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _upstream(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.sent.append(data)
                if self.cut_before(data):
                    break
                if self.cut_after(data):
                    # Nothing of the answer may get through: stop listening to it first.
                    client.shutdown(socket.SHUT_WR)
                    server.sendall(data)
                    server.recv(1)  # it has been done
                    break
                server.sendall(data)
        self._hang_up((client, server))

    def _downstream(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        self._hang_up((client, server))

    @staticmethod
    def _hang_up(pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
