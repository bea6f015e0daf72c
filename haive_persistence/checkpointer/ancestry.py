"""Ancestors of checkpoints that this process has read, to be used again while they are unchanged.

A `DeltaChannel` is rebuilt from the writes of up to hundreds of ancestors, in each turn and for each
snapshot of a history. A fork may add writes to old checkpoints, which changes no epoch. So a read asks for
one number that says whether a range of rows is as it was, and for the rows above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import pairwise
from operator import xor
from typing import NamedTuple

from haive_persistence.checkpointer.damage import raises_decode_error
from haive_persistence.checkpointer.storage.row_format import CheckpointNames
from haive_persistence.checkpointer.thread_reader import ChannelWrite, StoredCheckpoint, ThreadReader

ANCESTOR_BYTES = 2500  # of memory, about
MAX_ANCESTORS = 20_000  # per namespace


class Ancestor(NamedTuple):
    """A checkpoint with the names in it; its writes as LangGraph orders them, each with its pieces."""

    stored: StoredCheckpoint
    names: CheckpointNames
    writes: list[tuple[ChannelWrite, list[tuple[int, int]]]]

    @classmethod
    @raises_decode_error
    def read(cls, reader: ThreadReader, stored: StoredCheckpoint) -> Ancestor:
        """The names must be in memory."""
        writes = [
            (write, reader.ranges_of(write.manifest, write.base)) for write in reader.ordered(stored.writes)
        ]
        return cls(stored, reader.names(stored.body), writes)


class Segment(NamedTuple):
    """Rows from `first` to before `last`, and the number that says whether they are unchanged."""

    first: bytes
    last: bytes
    state: int


class Ancestry(NamedTuple):
    """A chain of checkpoints, each the parent of the one before it; the writes of all but the newest.

    Never changed: another one takes its place.
    """

    by_id: dict[bytes, Ancestor]  # newest first
    segments: tuple[Segment, ...]  # newest first, without gaps between them
    is_whole: bool  # the oldest has no parent

    @property
    def newest(self) -> bytes:
        return self.segments[0].last

    @property
    def oldest(self) -> bytes:
        return self.segments[-1].first

    @property
    def state(self) -> int:
        return reduce(xor, (segment.state for segment in self.segments))

    @property
    def size(self) -> int:
        return ANCESTOR_BYTES * len(self.by_id)

    def below(self, checkpoint_id: bytes) -> list[Ancestor]:
        """A checkpoint of the chain and its ancestors."""
        return [ancestor for id_, ancestor in self.by_id.items() if id_ <= checkpoint_id]

    def continued_by(self, more: Ancestry) -> Ancestry:
        """This chain with that of its oldest checkpoint below it."""
        older = {id_: ancestor for id_, ancestor in more.by_id.items() if id_ < self.oldest}
        return Ancestry(self.by_id | older, self.segments + more.segments, more.is_whole)

    def from_segment_of(self, checkpoint_id: bytes) -> Ancestry:
        """The chain without what is older than the segment that a checkpoint is in."""
        segments = tuple(segment for segment in self.segments if segment.last > checkpoint_id)
        if len(segments) == len(self.segments) or not segments:
            return self
        first = segments[-1].first
        by_id = {id_: ancestor for id_, ancestor in self.by_id.items() if id_ >= first}
        return Ancestry(by_id, segments, False)


def ancestry_of(
    chain: Sequence[Ancestor], state: int, known: Ancestry | None, *, is_whole: bool
) -> Ancestry | None:
    """The chain that was read, continued by what was known; None if there is nothing worth keeping.

    `state` is that of the rows read; `known` goes on where the chain ends: with its last checkpoint.
    """
    ids = [ancestor.stored.id for ancestor in chain]
    if len(ids) < 2 or not _descends(ids):
        return known
    segment = Segment(ids[-1], ids[0], state)
    by_id = dict(zip(ids, chain, strict=True))
    if known is None:
        found = Ancestry(by_id, (segment,), is_whole)
    else:
        older = {id_: ancestor for id_, ancestor in known.by_id.items() if id_ < ids[-1]}
        found = Ancestry(by_id | older, (segment, *known.segments), known.is_whole)
    return found if len(found.by_id) <= MAX_ANCESTORS else None


def _descends(ids: Iterable[bytes]) -> bool:
    """True if each id is below the one before: only then is a range of ids a range of the chain."""
    return all(newer > older for newer, older in pairwise(ids))
