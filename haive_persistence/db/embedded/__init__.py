"""The embedded Postgres: one server per data directory, shared by every process that uses it.

python -m haive_persistence.db.embedded            # run it, and say how to connect
python -m haive_persistence.db.embedded --psql     # a psql on it
python -m haive_persistence.db.embedded --dsn      # only print the connection string
"""

from haive_persistence.db.embedded.server import EmbeddedServer, attach

__all__ = ["EmbeddedServer", "attach"]
