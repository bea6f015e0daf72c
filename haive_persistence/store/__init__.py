"""The store: LangGraph's `BaseStore` on Postgres.

`postgres` is the class people use; `engine` is what it does. `batch` checks operations and sorts them by
kind, `statements` makes SQL of them and results of the rows.
"""

from haive_persistence._awaitable import SweeperHandle
from haive_persistence.embedding import ANNIndexConfig, PostgresIndexConfig
from haive_persistence.store.postgres import BlockingPostgresStore, PostgresStore

__all__ = ["ANNIndexConfig", "BlockingPostgresStore", "PostgresIndexConfig", "PostgresStore", "SweeperHandle"]
