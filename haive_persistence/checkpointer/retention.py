"""Delete and prune. What may be deleted is decided here, in memory, under the thread's row lock.

Whoever changes which pieces a thread has takes its row and gives it a new epoch first. Writers that
believe in the old epoch wait for that row, find it changed, and read and send again; so no
checkpoint can ever name a piece that is being deleted.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import (
    ABOVE_ALL_IDS,
    ROOT_NS_KEY,
    check_list,
    encode_id,
    ns_key,
    run_key,
    shown,
    thread_id_text,
)
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.storage.bindings import Bindings, bindings_of
from haive_persistence.checkpointer.storage.piece_index import ThreadLog, new_epoch
from haive_persistence.checkpointer.thread_reader import StoredCheckpoint, ThreadReader
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, Line, View
from haive_persistence.checkpointer.versions.names import Names
from haive_persistence.checkpointer.versions.ref_records import Ref, open_ref
from haive_persistence.db.protocol import Db, Executor, Statement
from haive_persistence.errors import InvalidInputError
from haive_persistence.keys import Sealing

COUNTERS = "counters_since_delta_snapshot"
CheckpointKey = tuple[int, bytes]  # (ns_key, checkpoint_id)


class _Thread(NamedTuple):
    """A whole thread, read under its lock."""

    reader: ThreadReader
    checkpoints: list[StoredCheckpoint]  # newest first within each namespace of a line
    orphans: dict[
        CheckpointKey, list[records.Write]
    ]  # writes whose checkpoint is on another line, or not stored
    refs: list[Ref]
    main_line: int | None

    def lines(self) -> dict[int, Line]:
        return {ref.ref_no: ref.line() for ref in self.refs if not ref.is_tag}

    def line_numbers(self) -> set[int]:
        return {FIRST_LINE, *self.lines()}

    def beside(self) -> dict[CheckpointKey, list[StoredCheckpoint]]:
        """Of each place of `orphans`, the checkpoints of its namespace and id, on whichever lines."""
        by_id: defaultdict[bytes, list[StoredCheckpoint]] = defaultdict(list)
        for s in self.checkpoints:
            by_id[s.id].append(s)
        lines = self.line_numbers()
        return {
            (key, id_): [s for s in by_id[id_] if ns_key(s.body.ns) ^ key in lines]
            for key, id_ in self.orphans
        }

    def views(self) -> list[View]:
        """The views of all names: of `main`, of each branch, and of a branch that would start at each tag."""
        lines = self.lines()
        named = {ref.ref_no for ref in self.refs if not ref.is_tag and ref.is_named}
        views = [
            View(0, _chain(lines, line_no)) for line_no in sorted({self.main_line or FIRST_LINE} | named)
        ]
        for ref in self.refs:
            if ref.is_tag and ref.is_named and ref.checkpoint_id is not None:
                home, id_ = ref.home_line or FIRST_LINE, ref.checkpoint_id
                later = (s.id for s in self.checkpoints if s.key[0] == ROOT_NS_KEY ^ home and s.id > id_)
                cut = min(later, default=ABOVE_ALL_IDS)
                start = Line(_NO_LINE, None, home, home, id_, cut)
                views.append(View(0, (start, *_chain(lines, home))))
        return views


_NO_LINE = -1


def _chain(lines: Mapping[int, Line], line_no: int) -> tuple[Line, ...]:
    chain: list[Line] = []
    at: int | None = line_no
    while at is not None:
        line = lines.get(at, Line(at))
        chain.append(line)
        at = line.base
    return tuple(chain)


class Retention:
    """The operations that take pieces away."""

    def __init__(self, context: TenantContext, names: Names) -> None:
        self._context = context
        self._queries = context.queries
        self._names = names

    async def delete_threads(self, db: Db, thread_ids: Iterable[object]) -> None:
        await self._delete_threads(db, self._keys_of(thread_ids))

    def _keys_of(self, thread_ids: object) -> list[uuid.UUID]:
        return [self._context.thread_key(t) for t in check_list("thread_ids", thread_ids)]

    async def _delete_threads(self, db: Db, keys: Sequence[uuid.UUID]) -> None:
        if not keys:
            return
        names = (
            "delete_thread",
            "delete_refs_of",
            "delete_operations_of",
            "delete_checkpoints_of",
            "delete_writes_of",
            "delete_pieces_of",
        )
        statements = [Statement(self._queries[n], {"threads": keys}) for n in names]
        await self._context.retrying("threads to delete", lambda: db.batch(statements, idempotent=True))
        for key in keys:
            self._context.cache.drop(key.bytes)

    async def prune(self, db: Db, thread_ids: Sequence[object], strategy: str) -> None:
        keys = self._keys_of(thread_ids)
        if strategy == "delete":
            await self._delete_threads(db, keys)
        elif strategy == "keep_latest":
            for key in keys:
                await self._rewrite(db, key, all_but_latest)
        else:
            raise InvalidInputError(
                f'unknown prune strategy {shown(strategy)}: use "keep_latest" or "delete"'
            )

    async def delete_for_runs(self, db: Db, run_ids: Sequence[str]) -> None:
        wanted = {thread_id_text(r, "run_id") for r in check_list("run_ids", run_ids)}
        if not wanted:
            return
        await self._context.settle_plaintext(db)
        codec = await self._context.latest_codec(db)
        if not codec.sealed:  # sealed checkpoints would not be found
            await self._context.keys.refresh_to_write(db)
        keys = {"run_keys": [run_key(r, codec.blind("run_id", r)) for r in wanted]}

        def of_runs(thread: _Thread) -> set[CheckpointKey]:
            reader = thread.reader
            found = {
                (s.ns_key, s.id)
                for s in thread.checkpoints
                if str(reader.metadata(s.body).get("run_id")) in wanted
            }
            return found - needed_by_other_runs(thread, found)

        # Again until there are no others: a copy that had begun is there once its source's row is free.
        done: set[uuid.UUID] = set()
        while True:
            rows = await db.fetch_all(self._queries["threads_of_runs"], keys, idempotent=True)
            threads = {row[0] for row in rows} - done
            if not threads:
                return
            for key in threads:
                await self._rewrite(db, key, of_runs)
            done |= threads

    async def _rewrite(self, db: Db, key: uuid.UUID, choose: Any) -> None:
        """Delete the checkpoints `choose` names, their writes, and the pieces nothing else uses."""

        async def rewrite() -> None:
            await self._context.with_all_keys(db, lambda: self._rewrite_once(db, key, choose))

        await self._context.retrying("a thread to prune", rewrite)

    async def _rewrite_once(self, db: Db, key: uuid.UUID, choose: Any) -> None:
        codec = await self._context.latest_codec(db)
        async with db.transaction() as tx:
            if not codec.sealed:  # a row that is written again is no longer older than the tenant's first key
                await self._context.keys.data_keys.check_plaintext(tx, self._context.tenant)
            row = await tx.fetch_one(self._queries["lock_thread"], {"thread": key})
            if row is None:
                return
            thread = await self._load_thread(tx, codec, key, *row)
            _check_lines(thread)
            to_delete: set[CheckpointKey] = choose(thread)
            if to_delete:
                await self._delete(tx, codec, key, thread, to_delete)
        if to_delete:
            self._context.cache.drop(key.bytes)

    async def _load_thread(
        self, tx: Executor, codec: Sealing, key: uuid.UUID, epoch: int, main_line: int | None
    ) -> _Thread:
        params = {"thread": key}
        statements = [
            Statement(self._queries[n], params) for n in ("all_sequences", "all_writes", "all_checkpoints")
        ]
        statements.append(Statement(self._names.queries["refs_of_thread"], params))
        sequences, writes, rows, refs = await tx.batch(statements)
        reader = ThreadReader(ThreadLog(epoch), codec, key, self._queries)
        reader.open_sequences_later([(no, payload) for no, payload in sequences])
        by_place: defaultdict[CheckpointKey, list[records.Write]] = defaultdict(list)
        for key_, id_, no, _, payload in writes:
            by_place[key_, id_].append(reader.open_write(key_, id_, no, payload))
        checkpoints = [
            StoredCheckpoint(
                key,
                None,
                key_,
                id_,
                parent,
                reader.open_body(key_, id_, parent, payload),
                by_place.pop((key_, id_), []),
                None,
                parent_ns_key,
            )
            for key_, id_, parent, parent_ns_key, payload in rows
        ]
        for s, row in zip(checkpoints, rows, strict=True):
            reader.check_parent_line(s.body, row[4], s.parent_ns_key)
        ids = {s.id for s in checkpoints}
        beside = (w.template for (_, id_), ws in by_place.items() if id_ in ids for w in ws)
        if missing := reader.needed(checkpoints, "metadata") | {
            no for no in beside if no not in reader.pieces
        }:
            await reader.fetch(tx, missing)
        # A run saves its writes in the background: those of a checkpoint not saved yet are kept. A branch has
        # its own at a checkpoint of another line.
        opened = [open_ref(codec, key, row) for row in refs]
        return _Thread(reader, checkpoints, dict(by_place), opened, main_line)

    async def _delete(
        self, tx: Executor, codec: Sealing, key: uuid.UUID, thread: _Thread, to_delete: set[CheckpointKey]
    ) -> None:
        kept = [s for s in thread.checkpoints if s.key not in to_delete]
        orphans = _orphans_to_delete(thread, kept, to_delete)
        loose = [w for place, writes in thread.orphans.items() if place not in orphans for w in writes]
        live = live_ranges(thread.reader, kept, loose)
        places = sorted(to_delete | orphans)
        moved = list(_new_parents(thread.checkpoints, to_delete))
        params: dict[str, Any] = {
            "thread": key,
            "epoch": new_epoch(),
            "ns_keys": [ns for ns, _ in places],
            "ids": [id_ for _, id_ in places],
            "child_ns_keys": [s.ns_key for s, _ in moved],
            "child_ids": [s.id for s, _ in moved],
            "parents": [parent and parent[1] for _, parent in moved],
            "parent_ns_keys": [parent and _other_ns_key(s, parent) for s, parent in moved],
            "bodies": [_resealed_body(codec, thread, s, parent, to_delete) for s, parent in moved],
            "live": "{" + ",".join(f"[{start},{stop})" for start, stop in live) + "}",
        }
        names = [
            "next_epoch",
            "delete_checkpoints",
            "delete_writes",
            "set_parents",
            "delete_pieces_outside",
        ]
        statements = [Statement(self._queries[n], params) for n in names]
        for ref in _changed_refs(thread, to_delete):
            row = {"thread": key, **ref.params(codec, key)}
            statements.append(Statement(self._names.queries["replace_ref"], row))
        if not kept and not loose:
            names = ["delete_thread", "delete_refs_of", "delete_operations_of"]
            statements += [Statement(self._queries[n], {"threads": [key]}) for n in names]
        await tx.batch(statements)


def _other_ns_key(s: StoredCheckpoint, parent: CheckpointKey) -> int | None:
    return None if parent[0] == s.ns_key else parent[0]


def _orphans_to_delete(
    thread: _Thread, kept: Iterable[StoredCheckpoint], to_delete: set[CheckpointKey]
) -> set[CheckpointKey]:
    """Places where a branch has pending writes at a checkpoint of another line that goes."""
    stays = {s.key for s in kept}
    found = {place: {s.key for s in there} for place, there in thread.beside().items()}
    return {place for place, keys in found.items() if keys & to_delete and not keys & stays}


def _new_parents(
    checkpoints: Iterable[StoredCheckpoint], to_delete: set[CheckpointKey]
) -> Iterator[tuple[StoredCheckpoint, CheckpointKey | None]]:
    """The checkpoints that stay and lose their parent, with the nearest ancestor that stays.

    A `DeltaChannel` is rebuilt along the parents: without a way to them, what older runs wrote would be lost.
    """
    parents = {s.key: s.parent_key for s in checkpoints}
    for s in checkpoints:
        parent = s.parent_key
        if s.key in to_delete or parent not in to_delete:
            continue
        yield s, _nearest_that_stays(parents, parent, to_delete)


def _nearest_that_stays(
    parents: Mapping[CheckpointKey, CheckpointKey | None],
    place: CheckpointKey | None,
    to_delete: set[CheckpointKey],
) -> CheckpointKey | None:
    while place is not None and place in to_delete:
        place = parents[place]
    return place


def _changed_refs(thread: _Thread, to_delete: set[CheckpointKey]) -> Iterator[Ref]:
    """The branches that start at a checkpoint that goes, now at its nearest ancestor that stays.

    Its tags name nothing any more.
    """
    by_key = {s.key: s for s in thread.checkpoints}
    parents = {key: s.parent_key for key, s in by_key.items()}
    lines = thread.lines()
    own_keys = {s.ns_key for s in thread.checkpoints if s.key not in to_delete}
    for ref in thread.refs:
        if ref.checkpoint_id is None or ref.home_line is None:
            continue
        start = (ROOT_NS_KEY ^ ref.home_line, ref.checkpoint_id)
        if start not in to_delete:
            continue
        if ref.is_tag:
            yield ref._replace(is_deleted=True, checkpoint_id=None)
            continue
        stays = _nearest_that_stays(parents, start, to_delete)
        if stays is None:
            yield ref._replace(checkpoint_id=b"", cut_id=b"", base_writes=[])
            continue
        # What the branch has put was made from that ancestor's writes; without any, it begins there again.
        own = ROOT_NS_KEY ^ ref.ref_no in own_keys
        shown = [w.no for w in by_key[stays].writes] if stays in by_key else []
        for line in _chain(lines, ref.ref_no)[1:]:
            shown += [w.no for w in thread.orphans.get((ROOT_NS_KEY ^ line.no, stays[1]), ())]
        yield ref._replace(
            home_line=stays[0] ^ ROOT_NS_KEY,
            checkpoint_id=stays[1],
            base_writes=sorted(shown),
            is_passed=not own,
        )


def _resealed_body(
    codec: Sealing,
    thread: _Thread,
    s: StoredCheckpoint,
    parent: CheckpointKey | None,
    to_delete: set[CheckpointKey],
) -> bytes | None:
    """The body sealed again with its new parent, and with what is left of the rows that led to it."""
    if not codec.sealed:
        return None
    bound = None
    if parent is not None:
        by_key = {other.key: other for other in thread.checkpoints}
        ancestor = by_key.get(parent)  # it may never have been stored
        writes: dict[bytes, frozenset[int]] = {}
        if ancestor is not None and parent[0] == s.ns_key:
            writes[parent[1]] = frozenset(w.no for w in ancestor.writes)
        at: StoredCheckpoint | None = s
        while at is not None and at.key != parent:
            for id_, numbers in bindings_of(at.body).writes.items():
                if not any(gone == id_ for _, gone in to_delete):
                    writes[id_] = writes.get(id_, frozenset()) | numbers
            at = None if at.parent_key is None else by_key.get(at.parent_key)
        bound = Bindings(ancestor is not None, writes).encode(parent[1], s.body.base)
    parent_id = None if parent is None else parent[1]
    other = None if parent is None else _other_ns_key(s, parent)
    body = s.body._replace(parent=parent_id, bound=bound, parent_ns_key=other)
    return codec.seal("checkpoint", (s.thread, s.ns_key, s.id), body.pack())


def _check_lines(thread: _Thread) -> None:
    """Raise TamperedError where rows are missing: what is left must not be sealed as if it were all.

    All lines together: a checkpoint may rely on rows of the lines that its own starts from.
    """
    namespaces: defaultdict[int, dict[bytes, StoredCheckpoint]] = defaultdict(dict)
    for s in thread.checkpoints:
        line = namespaces[ns_key(s.body.ns)]
        there = line.get(s.id)
        line[s.id] = s if there is None else s._replace(writes=[*s.writes, *there.writes])
    added: defaultdict[CheckpointKey, list[records.Write]] = defaultdict(list)
    for place, beside in thread.beside().items():
        if beside:
            added[ns_key(beside[0].body.ns), place[1]] += thread.orphans[place]
    for (namespace, id_), writes in added.items():
        found = namespaces[namespace][id_]
        namespaces[namespace][id_] = found._replace(writes=[*found.writes, *writes])
    for line in namespaces.values():
        thread.reader.check_ancestors(line.values(), line.values(), ended=True)


def live_ranges(
    reader: ThreadReader, kept: Iterable[StoredCheckpoint], loose: Iterable[records.Write]
) -> Iterator[tuple[int, int]]:
    """The piece numbers that some checkpoints and writes use, as sorted `(start, stop)`."""
    runs: set[tuple[int, int]] = set()
    for s in kept:
        runs.add((s.body.template, 1))
        for m in s.body.manifests():
            runs.update(mf.piece_numbers(m, s.body.base, reader.log.sequences))
        for w in s.writes:
            runs.update(_of_write(reader, w))
    for w in loose:
        runs.update(_of_write(reader, w))
    start = stop = -1
    for first, count in sorted(runs):
        if first <= stop:
            stop = max(stop, first + count)
            continue
        if start >= 0:
            yield start, stop
        start, stop = first, first + count
    if start >= 0:
        yield start, stop


def _of_write(reader: ThreadReader, write: records.Write) -> Iterator[tuple[int, int]]:
    yield write.template, 1
    for m in write.manifests:
        yield from mf.piece_numbers(m, write.base, reader.log.sequences)


# --- what keep_latest keeps


def all_but_latest(thread: _Thread) -> set[CheckpointKey]:
    """All checkpoints but the latest of each namespace, as each name shows it, and what those still need.

    A subgraph call's namespace ends in ":" and its task's id, and goes with the root checkpoint that
    the call started from, once that one is saved; a `checkpointer=True` subgraph's outlives its calls.
    A `DeltaChannel` is rebuilt from its ancestors' writes: they are kept back to its last stored value.
    """
    by_line: defaultdict[int, defaultdict[int, list[StoredCheckpoint]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for s in thread.checkpoints:
        namespace = ns_key(s.body.ns)
        by_line[s.ns_key ^ namespace][namespace].append(s)
    namespaces: defaultdict[int, list[StoredCheckpoint]] = defaultdict(list)
    for line in by_line.values():
        for namespace, checkpoints in line.items():
            namespaces[namespace] += checkpoints
    delta = {namespace: _delta_channels(thread.reader, all_) for namespace, all_ in namespaces.items()}
    kept: set[CheckpointKey] = set()
    for view in thread.views():
        kept.update(_retained_by(thread.reader, _shown(view, by_line), delta))
    return {s.key for s in thread.checkpoints} - kept


def _shown(
    view: View, by_line: Mapping[int, Mapping[int, Sequence[StoredCheckpoint]]]
) -> dict[int, dict[bytes, StoredCheckpoint]]:
    """The checkpoints that a view shows, by namespace, newest first."""
    shown: dict[int, dict[bytes, StoredCheckpoint]] = {}
    for line_no, root_below, below in zip(*view.levels(), strict=True):
        for namespace, checkpoints in by_line.get(line_no, {}).items():
            bound = root_below if namespace == ROOT_NS_KEY else below
            line = shown.setdefault(namespace, {})
            for s in checkpoints:
                if bound is None or s.id < bound:
                    line.setdefault(s.id, s)
    return shown


def _retained_by(
    reader: ThreadReader,
    shown: Mapping[int, Mapping[bytes, StoredCheckpoint]],
    delta: Mapping[int, set[str]],
) -> Iterator[CheckpointKey]:
    roots = shown.get(ROOT_NS_KEY, {})
    latest_root = next(iter(roots), None)
    for namespace, line in shown.items():
        if not line:
            continue
        newest = next(iter(line.values()))
        if namespace != ROOT_NS_KEY and ":" in newest.body.ns:
            started = (reader.metadata(newest.body).get("parents") or {}).get("")
            origin = encode_id(started) if isinstance(started, str) and started else None
            if origin in roots and origin != latest_root:
                continue
        yield from (line[id_].key for id_ in _retained_ids(reader, line, delta[namespace]))


def _retained_ids(
    reader: ThreadReader, line: Mapping[bytes, StoredCheckpoint], delta: set[str]
) -> set[bytes]:
    """The latest checkpoint of a namespace and the ancestors its delta channels are rebuilt from."""
    if not line:
        return set()
    latest = next(iter(line.values()))
    names = reader.names(latest.body)
    open_channels = {ch for ch in delta if ch in names.channels and ch not in names.values}
    kept = {latest.id}
    at = latest
    while open_channels and at.parent is not None and at.parent in line:
        at = line[at.parent]
        kept.add(at.id)
        open_channels -= set(reader.names(at.body).values)
    return kept


# --- what the runs that stay need of those that go


def needed_by_other_runs(thread: _Thread, to_delete: set[CheckpointKey]) -> set[CheckpointKey]:
    """Of these checkpoints, those that hold what other runs gave to a `DeltaChannel`.

    A run that resumes another, or is saved at its end only, has its writes below the checkpoint it started
    from, which is the other's. And where older checkpoints are pruned, a snapshot may be all that is left of
    them.
    """
    lines: defaultdict[int, dict[CheckpointKey, StoredCheckpoint]] = defaultdict(dict)
    for s in thread.checkpoints:
        lines[ns_key(s.body.ns)][s.key] = s
    needed: set[CheckpointKey] = set()
    for line in lines.values():
        if not (delta := _delta_channels(thread.reader, line.values())):
            continue
        gone = to_delete & line.keys()
        while more := set(_needed_by_rest(thread, line, delta, gone)):
            gone -= more
            needed |= more
    return needed


def _needed_by_rest(
    thread: _Thread,
    line: Mapping[CheckpointKey, StoredCheckpoint],
    delta: set[str],
    gone: set[CheckpointKey],
) -> Iterator[CheckpointKey]:
    reader = thread.reader
    for s in line.values():
        if s.key in gone:
            continue
        above = None if s.parent_key is None else line.get(s.parent_key)
        if above is not None and above.key in gone:
            beside = thread.orphans.get((s.ns_key, above.id), ())  # of a branch, at the start on another line
            if delta & reader.written([*above.writes, *beside]):
                yield above.key
        names = reader.names(s.body)
        for channel in delta.intersection(names.channels).difference(names.values):
            if (only := _only_seed(reader, line, channel, above, gone)) is not None:
                yield only


def _only_seed(
    reader: ThreadReader,
    line: Mapping[CheckpointKey, StoredCheckpoint],
    channel: str,
    at: StoredCheckpoint | None,
    gone: set[CheckpointKey],
) -> CheckpointKey | None:
    """The nearest ancestor with a value of this channel, if it is to go and what led to it is cut off."""
    nearest: CheckpointKey | None = None
    oldest = at
    while at is not None:
        oldest = at
        if channel in reader.names(at.body).values:
            if at.key not in gone:
                return None
            nearest = nearest or at.key
        at = None if at.parent_key is None else line.get(at.parent_key)
    if oldest is None or nearest is None:
        return None
    began = records.metadata_value(oldest.body, reader.names(oldest.body), "step", reader.decoder) == -1
    return None if began else nearest


def _delta_channels(reader: ThreadReader, line: Iterable[StoredCheckpoint]) -> set[str]:
    """The channels that counters or snapshots show to be `DeltaChannel`s."""
    found: set[str] = set()
    for s in line:
        names = reader.names(s.body)
        for channel, m in zip(names.values, s.body.values, strict=True):
            if type(m) is list and m and m[0] == mf.SNAPSHOT:
                found.add(channel)
        if COUNTERS in names.metadata:
            found.update(records.metadata_value(s.body, names, COUNTERS, reader.decoder) or {})
    return found
