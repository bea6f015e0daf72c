"""Merging branches of a thread: find the merge base, merge the states, move the branch to the result.

The result is put on a line of its own, which the branch's name is then moved to, if the branch is still
where it was. So a run that is under way neither loses the merge nor is lost, and undo takes a merge back as
it does a restore.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.channels.base import BaseChannel
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer.channel_versions import next_version
from haive_persistence.checkpointer.context import ATTEMPTS, TenantContext
from haive_persistence.checkpointer.delta import DeltaHistory
from haive_persistence.checkpointer.ids import (
    ABOVE_ALL_IDS,
    ROOT_NS_KEY,
    Address,
    decode_id,
    encode_id,
    line_name,
)
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.retention import COUNTERS
from haive_persistence.checkpointer.versions.ancestry_graph import CheckpointGraph, Node
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, Line, View
from haive_persistence.checkpointer.versions.locate import Locator
from haive_persistence.checkpointer.versions.merge import (
    Conflict,
    MergedCheckpoint,
    merge_checkpoints,
    resolve,
)
from haive_persistence.checkpointer.versions.moves import Moves, moved
from haive_persistence.checkpointer.versions.names import MAIN
from haive_persistence.checkpointer.versions.records import Merge, Said, Ways, config_of
from haive_persistence.checkpointer.versions.ref_records import open_ref
from haive_persistence.checkpointer.versions.ref_rows import Locked, RefRows
from haive_persistence.checkpointer.versions.side_effects import calls_since
from haive_persistence.checkpointer.writes import Writes
from haive_persistence.db.protocol import Db, Statement
from haive_persistence.errors import ConflictError, InvalidInputError, NotFoundError

_CONFLICTS = "conflicts"  # the key in the metadata of a merge


class _Point(NamedTuple):
    """A checkpoint and the branch, or line, through which it is read."""

    node: Node
    found: CheckpointTuple

    @property
    def id(self) -> str:
        return self.found.checkpoint["id"]


class _Head(NamedTuple):
    """The head of a branch, and the line that the branch means."""

    line: int
    point: _Point


class Merging:
    """Merges the branches of one tenant's threads."""

    def __init__(
        self,
        context: TenantContext,
        reads: Reads,
        writes: Writes,
        delta: DeltaHistory,
        locator: Locator,
        moves: Moves,
    ) -> None:
        self._context = context
        self._reads = reads
        self._views = reads.views
        self._names = reads.views.names
        self._writes = writes
        self._delta = delta
        self._locator = locator
        self._moves = moves
        self._rows = RefRows(context, self._names.queries)

    # --- calls

    async def merge(
        self, db: Db, thread_id: object, source: object, into: str, ways: Ways, said: Said
    ) -> Merge:
        """Merge a branch into another: see `Checkpointer.merge`."""
        for _ in range(ATTEMPTS):
            graph = await self._graph(db, thread_id)
            ours = await self._head(db, thread_id, into)
            located = await self._locator.locate(db, source, thread_id)
            if located.ns or located.thread != self._rows.thread(thread_id).thread:
                raise InvalidInputError("merge takes a branch or a checkpoint of the same thread")
            theirs = await self._point(db, located)
            bases = graph.merge_bases(ours.point.node, theirs.node)
            if theirs.node in bases or ours.point.node == theirs.node:
                return self._done(thread_id, into, ours.point.found, ours.point, theirs, ())
            if ours.point.node in bases:
                after = {"line": theirs.node.line, "head": theirs.id}
                if await self._move(db, thread_id, into, ours, after, "merge", said):
                    return self._done(thread_id, into, theirs.found, ours.point, theirs, (), is_fast=True)
                continue
            base = await self._base(db, thread_id, graph, bases, ways)
            merged = await self._merged(db, base, ours.point.found, theirs.found, ways)
            metadata = {"merged": theirs.id, **_recorded(merged.conflicts)}
            spaces = await self._namespaces(db, thread_id, graph, bases, ours.point, theirs, ways)
            put = await self._commit(
                db, thread_id, into, ours, merged, metadata, "merge", said, theirs.node, spaces
            )
            if put is not None:
                return self._done(thread_id, into, put, ours.point, theirs, merged.conflicts)
        raise _moving(thread_id, into)

    async def apply(
        self,
        db: Db,
        thread_id: object,
        checkpoint: object,
        onto: str,
        ways: Ways,
        said: Said,
        *,
        is_revert: bool,
    ) -> Merge:
        """Apply the change that a checkpoint made, or its opposite: see `cherry_pick` and `revert`."""
        kind = "revert" if is_revert else "cherry_pick"
        picked = await self._point(db, await self._locator.locate(db, checkpoint, thread_id))
        if picked.found.parent_config is None:
            raise InvalidInputError(
                f"the checkpoint {picked.id!r} has no parent: it is no change of anything"
            )
        parent = await self._reads.get_tuple(db, picked.found.parent_config)
        if parent is None:
            raise NotFoundError(f"the parent of the checkpoint {picked.id!r} was pruned")
        for _ in range(ATTEMPTS):
            ours = await self._head(db, thread_id, onto)
            base, theirs = (picked.found, parent) if is_revert else (parent, picked.found)
            merged = await self._merged(db, await self._whole(db, base, ways), ours.point.found, theirs, ways)
            if not merged.new_versions:
                return self._done(thread_id, onto, ours.point.found, ours.point, picked, merged.conflicts)
            metadata = {kind: picked.id, **_recorded(merged.conflicts)}
            put = await self._commit(db, thread_id, onto, ours, merged, metadata, kind, said, None, ())
            if put is not None:
                return self._done(thread_id, onto, put, ours.point, picked, merged.conflicts)
        raise _moving(thread_id, onto)

    async def resolve(self, db: Db, merge: Merge, choices: Mapping[Any, Any], said: Said) -> Merge:
        """Decide conflicts of a merge: see `Checkpointer.resolve`."""
        into = merge.branch or MAIN
        for _ in range(ATTEMPTS):
            ours = await self._head(db, merge.thread_id, into)
            values, left = resolve(ours.point.found.checkpoint["channel_values"], merge.conflicts, choices)
            now = ours.point.found.checkpoint
            changed = {
                name: value for name, value in values.items() if value is not now["channel_values"].get(name)
            }
            merged = self._changed(now, values, changed)
            metadata = {"resolved": merge.checkpoint_id, **_recorded(left)}
            put = await self._commit(
                db, merge.thread_id, into, ours, merged, metadata, "resolve", said, None, ()
            )
            if put is not None:
                return self._done(merge.thread_id, into, put, ours.point, ours.point, left)
        raise _moving(merge.thread_id, into)

    # --- states

    async def _graph(self, db: Db, thread_id: object) -> CheckpointGraph:
        """Every checkpoint of the graph itself, with what it was made from."""
        address = self._rows.thread(thread_id)

        async def read() -> CheckpointGraph:
            codec = await self._context.codec(db)
            params = {"thread": address.thread, "root_key": ROOT_NS_KEY}
            queries = self._names.queries
            rows, refs = await db.batch(
                [Statement(queries[n], params) for n in ("root_checkpoints", "refs_of_thread")],
                idempotent=True,
            )
            return CheckpointGraph(
                [(row[0], row[1], row[2], row[3]) for row in rows],
                [open_ref(codec, address.thread, row) for row in refs],
            )

        return await self._context.with_all_keys(db, read)

    async def _head(self, db: Db, thread_id: object, branch: str) -> _Head:
        address = Address(config_of(thread_id, None if branch == MAIN else branch), self._context.tenant)
        point = await self._point(db, address)
        view = await self._names.view(db, address)
        return _Head(FIRST_LINE if view is None else view.own.no, point)

    async def _point(self, db: Db, address: Address) -> _Point:
        """A checkpoint with its values, and the line that it is on."""
        found = await self._reads.get_tuple(db, address.config_or_head())
        if found is None:
            raise NotFoundError(
                f"there is no such checkpoint on branch {address.branch or MAIN!r} of {address.thread_id!r}"
            )
        exact = Address(found.config, self._context.tenant)
        view = await self._names.view(db, exact)
        home = None if view is None else await self._views.home_of(db, exact, view)
        line_no = FIRST_LINE if home is None else home[1]
        return _Point(Node(line_no, encode_id(found.checkpoint["id"])), found)

    async def _at(self, db: Db, thread_id: object, node: Node) -> CheckpointTuple:
        config = config_of(thread_id, line_name(node.line), decode_id(node.id))
        found = await self._reads.get_tuple(db, config)
        if found is None:
            raise NotFoundError(f"the checkpoint {decode_id(node.id)!r} was pruned meanwhile")
        return found

    async def _base(
        self, db: Db, thread_id: object, graph: CheckpointGraph, bases: Sequence[Node], ways: Ways
    ) -> Mapping[str, Any] | None:
        """The merge base; of several, their merge, in which conflicts do not matter."""
        base: Mapping[str, Any] | None = None
        before: Node | None = None
        for node in bases:
            whole = await self._whole(db, await self._at(db, thread_id, node), ways)
            if base is None or before is None:
                base, before = whole, node
                continue
            below = graph.merge_bases(before, node)
            common = await self._base(db, thread_id, graph, below, ways)
            merged = merge_checkpoints(
                common,
                base,
                whole,
                next_version=next_version,
                graph=ways.graph,
                drivers=ways.drivers,
                policy="primary_wins",
            )
            base = merged.checkpoint
        return base

    async def _whole(self, db: Db, found: CheckpointTuple, ways: Ways) -> Mapping[str, Any]:
        """A checkpoint with the values of its `DeltaChannel`s."""
        checkpoint: Any = found.checkpoint
        metadata: Mapping[str, Any] = found.metadata
        stored = checkpoint["channel_values"]
        missing = [name for name in metadata.get(COUNTERS) or () if name not in stored]
        if not missing:
            return checkpoint  # type: ignore[no-any-return]
        if ways.graph is None:
            raise InvalidInputError(
                f"the channels {', '.join(missing)} are DeltaChannels: pass graph=, which has their reducers"
            )
        values = dict(stored)
        histories = await self._delta.read(db, found.config, missing)
        for name in missing:
            spec = ways.graph.channels.get(name)
            if isinstance(spec, BaseChannel) and name in histories:
                values[name] = _replayed(spec, histories[name])
        return {**checkpoint, "channel_values": values}

    async def _merged(
        self,
        db: Db,
        base: Mapping[str, Any] | None,
        ours: CheckpointTuple,
        theirs: CheckpointTuple,
        ways: Ways,
    ) -> MergedCheckpoint:
        return merge_checkpoints(
            base,
            await self._whole(db, ours, ways),
            await self._whole(db, theirs, ways),
            next_version=next_version,
            graph=ways.graph,
            drivers=ways.drivers,
            policy=ways.policy,
        )

    def _changed(
        self, now: Mapping[str, Any], values: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> MergedCheckpoint:
        """A checkpoint with some values replaced, which makes no node run."""
        versions = dict(now["channel_versions"])
        highest = max(versions.values(), default=None)
        new = dict.fromkeys(changed, next_version(highest, None))
        seen = {
            node: {
                name: new[name] if name in new and version == versions.get(name) else version
                for name, version in channels.items()
            }
            for node, channels in now["versions_seen"].items()
        }
        checkpoint = {
            **now,
            "id": str(uuid6()),
            "channel_values": dict(values),
            "channel_versions": versions | new,
            "versions_seen": seen,
            "updated_channels": None,
        }
        return MergedCheckpoint(
            checkpoint=checkpoint, new_versions=new, changed=frozenset(changed), conflicts=()
        )

    # --- subgraphs that remember

    async def _namespaces(
        self,
        db: Db,
        thread_id: object,
        graph: CheckpointGraph,
        bases: Sequence[Node],
        ours: _Point,
        theirs: _Point,
        ways: Ways,
    ) -> list[tuple[str, CheckpointTuple | None, MergedCheckpoint]]:
        """The states of `checkpointer=True` subgraphs, merged: each with ours, if there is one."""
        nodes = (bases[0] if bases else None, ours.node, theirs.node)
        views = [None if node is None else await self._view_at(db, thread_id, graph, node) for node in nodes]
        merged: list[tuple[str, CheckpointTuple | None, MergedCheckpoint]] = []
        for ns in await self._names_of(db, thread_id, views[2]):
            base, mine, other = [
                None if view is None else await self._in_namespace(db, thread_id, view, ns) for view in views
            ]
            if other is None or _same(base, other):
                continue
            if mine is None or _same(base, mine):
                state = _as_it_is(await self._whole(db, other, ways))
            else:
                before = None if base is None else await self._whole(db, base, ways)
                sub = ways._replace(graph=_subgraph(ways.graph, ns))
                state = await self._merged(db, before, mine, other, sub)
            if state.new_versions:
                merged.append((ns, mine, state))
        return merged

    async def _view_at(self, db: Db, thread_id: object, graph: CheckpointGraph, node: Node) -> View:
        """The view of a branch that would start at a checkpoint."""
        address = Address(config_of(thread_id, line_name(node.line)), self._context.tenant)
        view = await self._names.resolve(db, address, line_name(node.line))
        if view is None:
            raise NotFoundError(f"there is no thread {address.thread_id!r}")
        cut = graph.next_on_line(node) or ABOVE_ALL_IDS
        start = Line(-1, None, node.line, node.line, node.id, cut)
        return View(view.epoch, (start, *view.lines))

    async def _names_of(self, db: Db, thread_id: object, view: View | None) -> list[str]:
        """The namespaces of a view's lines that outlive their calls."""
        if view is None:
            return []
        address = self._rows.thread(thread_id)
        codec = await self._context.codec(db)
        params = {
            "thread": address.thread,
            "root_key": ROOT_NS_KEY,
            "lines": [line.no for line in view.lines if line.no >= 0],
        }
        rows = await db.fetch_all(self._names.queries["namespaces_of_lines"], params, idempotent=True)
        reader = self._context.reader(codec, address.thread, view.epoch)
        names = {reader.open_body(ns, id_, parent, body).ns for ns, id_, parent, body in rows}
        return sorted(name for name in names if ":" not in name)

    async def _in_namespace(self, db: Db, thread_id: object, view: View, ns: str) -> CheckpointTuple | None:
        config = config_of(thread_id, None)
        config["configurable"]["checkpoint_ns"] = ns
        address = Address(config, self._context.tenant)
        home = await self._views.home_of(db, address, view)
        if home is None:
            return None
        there = config_of(thread_id, line_name(home[1]), decode_id(home[0]))
        there["configurable"]["checkpoint_ns"] = ns
        return await self._reads.get_tuple(db, there)

    # --- putting the result

    async def _commit(
        self,
        db: Db,
        thread_id: object,
        into: str,
        ours: _Head,
        merged: MergedCheckpoint,
        metadata: Mapping[str, Any],
        kind: str,
        said: Said,
        merge_parent: Node | None,
        spaces: Sequence[tuple[str, CheckpointTuple | None, MergedCheckpoint]],
    ) -> CheckpointTuple | None:
        """Put a checkpoint on a new line and move the branch to it. None if the branch moved meanwhile."""
        line_no = await self._new_line(db, thread_id, into, ours, merge_parent)
        if line_no is None:
            return None
        branch = line_name(line_no)
        for ns, mine, state in spaces:
            await self._put(db, thread_id, branch, ns, mine, state, {})
        await self._put(db, thread_id, branch, "", ours.point.found, merged, metadata)
        after = {"line": line_no, "head": merged.checkpoint["id"]}
        if not await self._move(db, thread_id, into, ours, after, kind, said):
            return None
        config = config_of(thread_id, None if into == MAIN else into, merged.checkpoint["id"])
        return await self._reads.get_tuple(db, config)

    async def _new_line(
        self, db: Db, thread_id: object, into: str, ours: _Head, merge_parent: Node | None
    ) -> int | None:
        async def make(locked: Locked) -> int | None:
            branch = None if into == MAIN else into
            before = await self._moves.position(locked, branch)
            if before != {"line": ours.line, "head": ours.point.id}:
                return None
            view = await self._moves.view(locked, branch)
            ref = await self._moves.new_line(
                locked, into, view, ours.point.id, secrets.randbits(62) | 1, merge_parent
            )
            return ref.ref_no

        return await self._rows.changing(db, thread_id, make, only_adds=True)

    async def _put(
        self,
        db: Db,
        thread_id: object,
        branch: str,
        ns: str,
        parent: CheckpointTuple | None,
        merged: MergedCheckpoint,
        metadata: Mapping[str, Any],
    ) -> None:
        config = config_of(thread_id, branch)
        config["configurable"]["checkpoint_ns"] = ns
        known: Mapping[str, Any] = {} if parent is None else parent.metadata
        if parent is not None:
            config["configurable"]["checkpoint_id"] = parent.checkpoint["id"]
        made: Any = {
            "source": "update",
            "step": known.get("step", -1) + 1,
            "parents": known.get("parents", {}),
            **metadata,
        }
        checkpoint: Any = merged.checkpoint
        await self._writes.put(db, config, checkpoint, made, merged.new_versions)

    async def _move(
        self,
        db: Db,
        thread_id: object,
        into: str,
        ours: _Head,
        after: Mapping[str, Any],
        kind: str,
        said: Said,
    ) -> bool:
        """Move the branch, unless it is not where it was."""

        async def move(locked: Locked) -> bool:
            branch = None if into == MAIN else into
            before = await self._moves.position(locked, branch)
            if before != {"line": ours.line, "head": ours.point.id}:
                return False
            reached = await self._moves.point(locked, into, before, after, may_be_protected=True)
            await self._moves.record(locked, kind, into, said, moved(before, reached))
            return True

        return await self._rows.changing(db, thread_id, move)

    def _done(
        self,
        thread_id: Any,
        into: str,
        head: CheckpointTuple,
        ours: _Point,
        theirs: _Point,
        conflicts: Sequence[Conflict],
        *,
        is_fast: bool = False,
    ) -> Merge:
        before = ours.found.checkpoint["channel_values"].values()
        return Merge(
            thread_id=thread_id,
            branch=None if into == MAIN else into,
            checkpoint_id=head.checkpoint["id"],
            conflicts=tuple(conflicts),
            is_fast_forward=is_fast,
            is_changed=head.checkpoint["id"] != ours.id,
            side_effects=calls_since(before, theirs.found.checkpoint["channel_values"].values()),
        )


def _same(one: CheckpointTuple | None, other: CheckpointTuple) -> bool:
    return one is not None and one.checkpoint["id"] == other.checkpoint["id"]


def _as_it_is(checkpoint: Mapping[str, Any]) -> MergedCheckpoint:
    """A checkpoint taken whole, under an id of its own."""
    return MergedCheckpoint(
        checkpoint={**checkpoint, "id": str(uuid6())},
        new_versions=dict(checkpoint["channel_versions"]),
        changed=frozenset(checkpoint["channel_values"]),
        conflicts=(),
    )


def _recorded(conflicts: Sequence[Conflict]) -> dict[str, Any]:
    return {_CONFLICTS: [conflict.to_dict() for conflict in conflicts]} if conflicts else {}


def _replayed(spec: Any, history: Mapping[str, Any]) -> Any:
    """The value of a `DeltaChannel`: its last stored value, and the writes since put through its reducer."""
    channel = spec.from_checkpoint(history["seed"]) if "seed" in history else spec.from_checkpoint(_empty())
    if hasattr(channel, "replay_writes"):
        channel.replay_writes(history["writes"])
    else:
        for _, _, value in history["writes"]:
            channel.update([value])
    return channel.get()


def _empty() -> Any:
    from langgraph._internal._typing import MISSING

    return MISSING


def _subgraph(graph: Any | None, ns: str) -> Any | None:
    """The compiled subgraph of a namespace."""
    if graph is None:
        return None
    return dict(graph.get_subgraphs(recurse=True)).get(ns)


def _moving(thread_id: object, branch: str) -> ConflictError:
    return ConflictError(
        f"branch {branch!r} of thread {thread_id!r} moves faster than it can be merged into; try again",
        sqlstate=None,
    )
