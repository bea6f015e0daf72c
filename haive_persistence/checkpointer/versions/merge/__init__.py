"""Three-way merges of agent state: pure, no database.

`states.py` merges mappings of channels, by `drivers.py` (a graph's reducers) or by shape (`three_way.py`;
`items.py` and `tools.py` for messages, `lists.py` for other lists). `conflicts.py` has what could not be
merged, `policy.py` what decides it, `resolve.py` decides it later. `checkpoints.py` merges whole checkpoints,
with LangGraph's bookkeeping (`channels.py`; `pending.py` for half-done steps). The rules and their reasons
are in `docs/design/0007-merge.md`.
"""

from haive_persistence.checkpointer.versions.merge.checkpoints import MergedCheckpoint, merge_checkpoints
from haive_persistence.checkpointer.versions.merge.conflicts import Conflict
from haive_persistence.checkpointer.versions.merge.drivers import drivers_of
from haive_persistence.checkpointer.versions.merge.pending import Step, carry_writes
from haive_persistence.checkpointer.versions.merge.resolve import resolve
from haive_persistence.checkpointer.versions.merge.states import Merged, cherry_pick, merge_states, revert
from haive_persistence.checkpointer.versions.merge.values import MISSING

__all__ = [
    "MISSING",
    "Conflict",
    "Merged",
    "MergedCheckpoint",
    "Step",
    "carry_writes",
    "cherry_pick",
    "drivers_of",
    "merge_checkpoints",
    "merge_states",
    "resolve",
    "revert",
]
