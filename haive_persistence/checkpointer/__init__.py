"""The LangGraph checkpointer.

saver.py         Checkpointer: LangGraph's methods, blocking and asynchronous
engine.py        put, write, get, list, delta history over `Db`
maintenance.py   delete, prune, copy
reading.py       rows to `CheckpointTuple`s
records.py       what a checkpoint's and a write's row hold
split.py         values to manifests and pieces, and back
manifest.py      how a value is described by the pieces it is made of
thread_log.py    what this process knows of a thread's pieces
keys.py, sealing.py   a tenant's codec, each payload bound to its row
identity.py      ids and keys
"""

from haive_persistence.checkpointer.config import CheckpointConfig
from haive_persistence.checkpointer.saver import Checkpointer

__all__ = ["CheckpointConfig", "Checkpointer"]
