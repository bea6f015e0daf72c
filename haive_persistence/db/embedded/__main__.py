"""`python -m haive_persistence.db.embedded`: run the embedded server, or look into it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from haive_persistence.config import PersistenceConfig
from haive_persistence.db.embedded import EmbeddedServer, attach
from haive_persistence.db.embedded.server import running_dsn
from haive_persistence.errors import EmbeddedServerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m haive_persistence.db.embedded", description=__doc__)
    parser.add_argument("--data-dir", help="the server's directory (default: HAIVE_DATA_DIR, or the user's)")
    parser.add_argument(
        "--dsn", action="store_true", help="print the connection string; an error if the server does not run"
    )
    parser.add_argument(
        "--psql", nargs=argparse.REMAINDER, help="run psql on it, with the arguments that follow"
    )
    given = parser.parse_args(arguments)
    if given.dsn:
        return _dsn(given.data_dir)
    server = attach(given.data_dir, PersistenceConfig().embedded_settings)
    try:
        if given.psql is not None:
            return _psql(server, given.psql)
        return _run(server)
    finally:
        server.close()


def _dsn(data_dir: str | None) -> int:
    """Starts nothing: the last user of a server stops it, so the string would be dead when it is used."""
    try:
        print(running_dsn(data_dir))
    except EmbeddedServerError as error:
        print(f"{error}: run `python -m haive_persistence.db.embedded` while you need it", file=sys.stderr)
        return 1
    return 0


def _psql(server: EmbeddedServer, arguments: Sequence[str]) -> int:
    command, environment = server.psql()
    return subprocess.run([*command, *arguments], env={**os.environ, **environment}, check=False).returncode


def _run(server: EmbeddedServer) -> int:
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # so that they are seen even if our parent ignores them
    command, environment = server.psql()
    print(f"running in {server.root} until you press Ctrl-C", file=sys.stderr)
    print(f"socket:  {server.dsn()}")
    with contextlib.suppress(EmbeddedServerError):
        print(f"TCP:     {server.dsn(tcp=True)}")
    print("psql:   ", *(f"{k}={v}" for k, v in environment.items()), shlex.join(command), flush=True)
    signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
