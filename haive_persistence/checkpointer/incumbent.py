"""Coming from langgraph-checkpoint-postgres: the threads that its savers left behind."""

from __future__ import annotations

import warnings

from haive_persistence.db.protocol import Db
from haive_persistence.db.sql import Queries
from haive_persistence.errors import DatabaseError


class LeftBehind:
    """Warns once if the incumbent's tables hold threads and ours hold none."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._looked = False

    async def warn_once(self, db: Db) -> None:
        """Look, the first time that a thread was asked for which is not stored."""
        if self._looked:
            return
        self._looked = True
        try:
            row = await db.fetch_one(
                self._queries["threads_left_behind"], {"tenant": db.tenant}, idempotent=True
            )
        except DatabaseError:  # a courtesy: whoever may not look has other worries
            return
        if row == (True,):
            warnings.warn(
                "the tables of langgraph-checkpoint-postgres in this database hold threads, and "
                "haive-persistence has none yet: threads that were started with PostgresSaver are not found. "
                "`haive import langgraph-postgres` will carry them over once it is released; until then "
                "continue those threads with PostgresSaver",
                UserWarning,
                stacklevel=2,
            )
