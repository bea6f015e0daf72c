"""The graph of a thread's checkpoints, merges included, and the merge bases in it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from haive_persistence.checkpointer.versions.ref_records import Ref


class Node(NamedTuple):
    """A checkpoint: the line that it is on, and its id."""

    line: int
    id: bytes


class CheckpointGraph:
    """Checkpoints of the graph itself with their parents: one each, two where a merge was put."""

    def __init__(self, rows: Iterable[tuple[int, bytes, int, bytes | None]], refs: Iterable[Ref]) -> None:
        self.parents: dict[Node, tuple[Node, ...]] = {}
        merged = {ref.ref_no: ref for ref in refs if ref.merge_id is not None}
        for line, id_, parent_line, parent in rows:
            node = Node(line, id_)
            parents = [] if parent is None else [Node(parent_line, parent)]
            ref = merged.get(line)
            if ref is not None and parents and parents[0].id == ref.checkpoint_id:
                parents.append(Node(ref.merge_line or 0, ref.merge_id or b""))
            self.parents[node] = tuple(parents)

    def ancestors(self, node: Node) -> set[Node]:
        """A checkpoint and all that it was made from."""
        found: set[Node] = set()
        left = [node]
        while left:
            at = left.pop()
            if at not in found and at in self.parents:
                found.add(at)
                left += self.parents[at]
        return found

    def merge_bases(self, ours: Node, theirs: Node) -> list[Node]:
        """The common ancestors that no other common ancestor was made from; the latest first."""
        common = self.ancestors(ours) & self.ancestors(theirs)
        older = {ancestor for node in common for ancestor in self._below(node)}
        return sorted(common - older, key=lambda node: node.id, reverse=True)

    def _below(self, node: Node) -> Iterator[Node]:
        for parent in self.parents[node]:
            if parent in self.parents:
                yield parent

    def next_on_line(self, node: Node) -> bytes | None:
        """The id of the next checkpoint on the same line."""
        later = [other.id for other in self.parents if other.line == node.line and other.id > node.id]
        return min(later, default=None)
