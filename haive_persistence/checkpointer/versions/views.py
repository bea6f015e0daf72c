"""Reading through a branch: checkpoints of its line, and below them those of the lines it starts from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import INTERRUPT

from haive_persistence.checkpointer.context import ATTEMPTS, TenantContext
from haive_persistence.checkpointer.ids import ABOVE_ALL_IDS, ROOT_NS_KEY, Address, listing_key, ns_key
from haive_persistence.checkpointer.metadata import contains
from haive_persistence.checkpointer.storage.row_format import Write
from haive_persistence.checkpointer.thread_reader import (
    StaleRead,
    StaleReadRetry,
    StoredCheckpoint,
    ThreadReader,
    no_garbage_collection,
)
from haive_persistence.checkpointer.versions.lines import Levels, Shown, View, shown_writes
from haive_persistence.checkpointer.versions.names import Names
from haive_persistence.db.protocol import Db, Executor, Query, Row

PAGE = 64


class _Found(NamedTuple):
    """A checkpoint as the rows of a view say it, with the writes at it that may be shown."""

    stored: StoredCheckpoint
    line_no: int
    left_by: int | None
    at_hand: list[Shown]


class ViewPage(NamedTuple):
    """Checkpoints of a view in order, and their reader; `size` counts those found before any filter."""

    reader: ThreadReader | None
    stored: list[StoredCheckpoint]
    size: int
    last: _Found | None


class Position(NamedTuple):
    """A place in a view, after which a page begins."""

    place: int
    id: bytes
    ns_key: int


class Views:
    """Reads one tenant's threads through branches."""

    def __init__(self, context: TenantContext, names: Names) -> None:
        self._context = context
        self._queries = names.queries
        self.names = names

    async def get_tuple(self, db: Db, address: Address, view: View) -> CheckpointTuple | None:
        """The checkpoint that the address names, or the latest that the view shows."""
        is_head = address.checkpoint_id is None and address.ns == ""
        levels = view.head_levels() if is_head else view.levels()
        params = {"id": address.checkpoint_id, "limit": 1, **_from_start(), "before": None}
        query = self._queries.render("view_namespace", signature_check="")
        again = StaleReadRetry(self._context.cache)
        for _ in range(ATTEMPTS):
            try:
                page = await self._page(db, query, address, view, levels, params)
                if page.reader is None or not page.stored:
                    return None
                with no_garbage_collection():
                    found = page.reader.checkpoint_tuple(page.stored[0])
                    page.reader.record(page.stored[0])
            except StaleRead as stale:
                again.forget(stale)
                continue
            page.reader.settle()
            return found
        raise again.final_error(f"thread {address.thread_id!r}")

    async def home_of(self, db: Executor, address: Address, view: View) -> tuple[bytes, int] | None:
        """The id of the checkpoint that an address names, and its line; None if the view shows none."""
        levels = view.head_levels() if address.checkpoint_id is None else view.levels()
        params = {**self._params(address, view, levels), "id": address.checkpoint_id}
        row = await db.fetch_one(self._queries["home_of"], params, idempotent=True)
        return None if row is None else (row[0], row[1])

    async def line_of(self, db: Executor, address: Address, id_: bytes) -> int | None:
        """The line of a checkpoint, on whichever it is; None if it is not stored."""
        params = {
            "thread": address.thread,
            "id": id_,
            "ns_key": ns_key(address.ns),
            "listing_key": listing_key(self._context.tenant, id_),
        }
        row = await db.fetch_one(self._queries["line_of_checkpoint"], params, idempotent=True)
        return None if row is None else row[0]

    async def list(
        self,
        db: Db,
        address: Address,
        view: View,
        *,
        all_namespaces: bool,
        filter: Mapping[str, Any] | None,
        before: bytes | None,
        signature: Mapping[str, int] | None,
        limit: int | None,
        after: Position | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a view, nearest line first, newest first; read page by page.

        A listing that has begun goes on along its lines, whatever the names mean meanwhile.

        Raises:
            ViewChanged: If the names may mean something else, before anything is listed.
        """
        name = "view_thread" if all_namespaces else "view_namespace"
        check = "" if signature is None else self._queries.part("has_signature")
        query = self._queries.render(name, signature_check=check)
        params: dict[str, Any] = {
            "id": address.checkpoint_id,
            "before": before,
            **(_from_start() if after is None else _going_on(after)),
            **(signature or {}),
        }
        left, has_begun = limit, after is not None
        while left is None or left > 0:
            params["limit"] = PAGE if left is None or filter else min(PAGE, left)
            try:
                page = await self._settled_page(db, query, address, view, view.levels(), params)
            except ViewChanged as changed:
                if not has_begun:
                    raise
                view = view._replace(epoch=changed.epoch)
                continue
            if page.reader is None or page.last is None:
                return
            has_begun = True
            with no_garbage_collection():
                tuples = [page.reader.checkpoint_tuple(stored) for stored in page.stored]
            for found in tuples:
                if filter and not contains(found.metadata, filter):
                    continue
                yield found
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            if page.size < params["limit"]:
                return
            last = page.last
            place = view.place_of(last.line_no) or 0
            params |= _going_on(Position(place, last.stored.id, last.stored.ns_key))

    async def ancestors(self, db: Db, address: Address, view: View, depth: int) -> ViewPage:
        """A checkpoint and up to `depth` of its ancestors, nearest first, with their pending writes."""
        params = {"id": address.checkpoint_id, "depth": depth}
        query = self._queries["view_ancestors"]
        page = await self._page(db, query, address, view, view.levels(), params, want="delta")
        return page._replace(stored=_chain(page.stored))

    async def _settled_page(
        self, db: Db, query: Query, address: Address, view: View, levels: Levels, params: Mapping[str, Any]
    ) -> ViewPage:
        again = StaleReadRetry(self._context.cache)
        for _ in range(ATTEMPTS):
            try:
                page = await self._page(db, query, address, view, levels, params)
            except StaleRead as stale:
                again.forget(stale)
                continue
            if page.reader is not None:
                page.reader.settle()
            return page
        raise again.final_error(f"thread {address.thread_id!r}")

    async def _page(
        self,
        db: Db,
        query: Query,
        address: Address,
        view: View,
        levels: Levels,
        params: Mapping[str, Any],
        want: str = "all",
    ) -> ViewPage:
        """The checkpoints that a query of a view finds, with what they need, and only writes it shows."""
        codec = await self._context.codec(db)
        rows = await db.fetch_all(query, {**params, **self._params(address, view, levels)}, idempotent=True)
        epoch = next((row[3] for row in rows if row[0] == "t"), None)
        if epoch is None:
            self._context.cache.drop(address.thread.bytes)
            return ViewPage(None, [], 0, None)
        if epoch != view.epoch:
            self._context.cache.drop(address.thread.bytes)
            raise ViewChanged(epoch)
        reader = self._context.reader(codec, address.thread, epoch)
        found = _open(reader, address, rows)
        missing = reader.needed([f.stored for f in found], want)
        if missing:
            await reader.fetch(db, missing)

        def interrupts(write: Write) -> bool:
            return INTERRUPT in reader.write_names(write).channels

        stored = [
            f.stored._replace(writes=shown_writes(view, f.line_no, f.left_by, f.at_hand, interrupts))
            for f in found
        ]
        return ViewPage(reader, stored, len(found), found[-1] if found else None)

    def _params(self, address: Address, view: View, levels: Levels) -> dict[str, Any]:
        return {
            "thread": address.thread,
            "ns_key": ns_key(address.ns),
            "root_key": ROOT_NS_KEY,
            "base_writes": sorted(view.own.base_writes),
            **levels._asdict(),
        }


def _chain(stored: Sequence[StoredCheckpoint]) -> list[StoredCheckpoint]:
    """Checkpoints that are each other's ancestors, nearest first."""
    by_key = {s.key: s for s in stored}
    above = {s.parent_key for s in stored}
    at = next((s for s in stored if s.key not in above), None)
    chain: list[StoredCheckpoint] = []
    while at is not None and len(chain) < len(stored):
        chain.append(at)
        at = None if at.parent_key is None else by_key.get(at.parent_key)
    return chain


class ViewChanged(Exception):
    """The thread is at another epoch than the view: names may mean something else."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch  # at which the thread is now


def _from_start() -> dict[str, Any]:
    return {"after_place": 0, "after_id": ABOVE_ALL_IDS, "after_ns": None}


def _going_on(after: Position) -> dict[str, Any]:
    return {"after_place": after.place + 1, "after_id": after.id, "after_ns": after.ns_key}


def _open(reader: ThreadReader, address: Address, rows: Sequence[Row]) -> list[_Found]:
    writes: defaultdict[tuple[int, bytes], list[tuple[int, Write]]] = defaultdict(list)
    found: list[_Found] = []
    for kind, ns, id_, number, other, second, third, payload in rows:
        if kind == "s":
            reader.open_sequence(number, payload)
        elif kind == "w":
            writes[second, id_].append((ns, reader.open_write(ns, id_, number, payload)))
        elif kind == "c":
            body = reader.open_body(ns, id_, other, payload)
            reader.check_parent_line(body, payload, number)
            own = writes[ns, id_]
            stored = StoredCheckpoint(
                address.thread,
                address.given_thread_id,
                ns,
                id_,
                other,
                body,
                [write for _, write in own],
                address.branch,
                number,
            )
            at_hand = [Shown(write_ns ^ ns ^ second, write) for write_ns, write in own]
            found.append(_Found(stored, second, third, at_hand))
    return found
