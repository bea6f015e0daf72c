"""Calls of several callers that go together, or one after the other.

coalesce.py       calls that tasks make in one tick of an event loop, answered as one
keyed_lock.py     writes of the same keys go in the order of their calls
group_commit.py   statements of several writers in one round trip and one transaction
"""

from haive_persistence.db.batching.coalesce import Coalescer, gather_limited
from haive_persistence.db.batching.keyed_lock import KeyedLock

__all__ = ["Coalescer", "KeyedLock", "gather_limited"]
