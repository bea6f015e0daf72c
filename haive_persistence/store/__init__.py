"""The store: LangGraph's `BaseStore` on Postgres.

`postgres` is the class people use; `engine` is what it does. A batch of operations is checked and
turned into statements by `batch` (with `keys`, `values`, `filters`), vector searches are followed
through by `nearest`; `vectors` reads `index=` and `ground` makes the tables it needs.
"""

from haive_persistence.store.postgres import BlockingPostgresStore, PostgresStore
from haive_persistence.store.settled import SweeperHandle
from haive_persistence.store.vectors import ANNIndexConfig, PostgresIndexConfig

__all__ = ["ANNIndexConfig", "BlockingPostgresStore", "PostgresIndexConfig", "PostgresStore", "SweeperHandle"]
