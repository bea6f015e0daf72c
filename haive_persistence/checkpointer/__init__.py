"""The LangGraph checkpointer.

saver.py          Checkpointer: LangGraph's methods, blocking and asynchronous
writes.py         put a checkpoint, put pending writes
reads.py          get and list
delta.py          what a `DeltaChannel` is rebuilt from
metadata.py       what is stored of metadata, and how filters compare
retention.py      delete and prune
copy.py           copy a thread
parts.py          the parts of a saver, shared by tenants
damage.py         rows that cannot be read
incumbent.py      threads of langgraph-checkpoint-postgres
context.py        one tenant's queries, codec and cache
thread_reader.py  rows to `CheckpointTuple`s
statements.py     variants of the writing statements
ids.py            ids and keys
versions/         branches and tags
storage/          how values become rows: pure, no database
"""

from haive_persistence.checkpointer.config import CheckpointConfig
from haive_persistence.checkpointer.damage import DamagedCheckpoint, UnsealedCheckpoint
from haive_persistence.checkpointer.saver import Checkpointer
from haive_persistence.checkpointer.versions.records import Branch, Merge, Operation, Restored, Tag

__all__ = [
    "Branch",
    "CheckpointConfig",
    "Checkpointer",
    "DamagedCheckpoint",
    "Merge",
    "Operation",
    "Restored",
    "Tag",
    "UnsealedCheckpoint",
]
