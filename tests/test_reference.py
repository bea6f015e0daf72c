"""docs/reference.md is what the code says; docs/how-to/operations.md is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from haive_persistence import Checkpointer, PersistenceConfig
from haive_persistence.db.embedded import EmbeddedServer
from haive_persistence.db.embedded.files import binaries
from tests.builders import store, thread
from tests.conftest import GivenServer
from tools import make_reference

OPERATIONS = Path(__file__).parents[1] / "docs" / "how-to" / "operations.md"


def test_reference_is_up_to_date() -> None:
    assert make_reference.PAGE.read_text() == make_reference.render(), "run `make reference`"


def test_every_variable_is_documented() -> None:
    documented = set(make_reference.VARIABLE.findall(make_reference.PAGE.read_text()))
    assert make_reference.variables_of_code() <= documented


def commands(heading: str) -> str:
    """The shell blocks of a section."""
    page = OPERATIONS.read_text()
    section = page[page.index(f"\n## {heading}\n") + 1 :].split("\n## ", 1)[0]
    found = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"no commands under {heading!r}"
    return "\n".join(found)


def run(heading: str, directory: Path, **environment: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.pop("tools"), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAIVE_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(heading)],
        cwd=directory,
        env={**kept, **environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tools(server: EmbeddedServer | GivenServer) -> str:
    """Where psql and pg_dump of the server's own version are."""
    if not isinstance(server, GivenServer):
        return str(binaries())
    with psycopg.connect(server.dsn()) as conn:
        major = conn.info.server_version // 10000
    found = Path(f"/usr/lib/postgresql/{major}/bin")
    if not (found / "pg_dump").exists():
        pytest.skip(f"pg_dump {major}, of this server's version, is not on this machine")
    return str(found)


def test_back_up_restore_and_uninstall(
    server: EmbeddedServer | GivenServer, empty_dsn: str, tools: str, tmp_path: Path
) -> None:
    name = f"restored_{uuid.uuid4().hex[:8]}"
    url = make_conninfo(empty_dsn, dbname=name)
    environment = {"tools": tools, "DATABASE_URL": empty_dsn, "RESTORED_DATABASE": name, "RESTORED_URL": url}
    with Checkpointer(empty_dsn) as saver:
        store(saver, {"messages": ["kept"]})
    run("Back up", tmp_path, **environment)
    run("Restore", tmp_path, **environment)
    with Checkpointer(url) as saver:
        found = saver.get_tuple(thread())
        assert found is not None
        assert found.checkpoint["channel_values"] == {"messages": ["kept"]}
        assert saver.for_tenant("another").get_tuple(thread()) is None
        store(saver, {"messages": ["kept", "written"]}, found.config)
    run("Uninstall", tmp_path, tools=tools, DATABASE_URL=url)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        role = "SELECT FROM pg_roles r, pg_database d WHERE d.datname = %s AND r.rolname = 'haive_haive_' || d.oid"
        assert not admin.execute(role, (name,)).fetchall()
        with psycopg.connect(url) as conn:
            assert not conn.execute("SELECT FROM pg_namespace WHERE nspname = 'haive'").fetchall()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def data_dirs() -> Iterator[tuple[Path, Path]]:
    """Two directories for embedded servers, that the account they run as can get to."""
    directory = Path(tempfile.mkdtemp(prefix="haive-ops-"))
    directory.chmod(0o755)
    yield directory / "old", directory / "new"
    shutil.rmtree(directory, ignore_errors=True)


def test_the_embedded_server_is_moved_to_a_new_directory(data_dirs: tuple[Path, Path]) -> None:
    old, new = data_dirs
    with Checkpointer(PersistenceConfig(data_dir=old)) as saver:
        store(saver, {"messages": ["kept"]})
    directories = {"HAIVE_DATA_DIR": str(old), "NEW_DATA_DIR": str(new)}
    run("The embedded server", old.parent, tools="", **directories)
    run("Upgrade Postgres", old.parent, tools="", **directories)
    with Checkpointer(PersistenceConfig(data_dir=new)) as saver:
        found = saver.get_tuple(thread())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"messages": ["kept"]}
