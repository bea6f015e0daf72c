"""Reading: one checkpoint, or a listing of many."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from haive_persistence.checkpointer.context import ATTEMPTS, Config, TenantContext
from haive_persistence.checkpointer.damage import DamagedCheckpoint, UnsealedCheckpoint
from haive_persistence.checkpointer.ids import (
    ABOVE_ALL_IDS,
    Address,
    check_limit,
    check_mapping,
    checkpoint_id_of,
    configurable_of,
    decode_id,
    line_name,
    listing_key,
    thread_key,
)
from haive_persistence.checkpointer.incumbent import LeftBehind
from haive_persistence.checkpointer.metadata import contains, filter_signature
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.thread_reader import (
    StaleRead,
    StaleReadRetry,
    StoredCheckpoint,
    ThreadReader,
    fetch_pieces,
    no_garbage_collection,
    open_rows,
)
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, Line, View
from haive_persistence.checkpointer.versions.views import Position as PlaceInView
from haive_persistence.checkpointer.versions.views import ViewChanged, Views
from haive_persistence.db.protocol import Db, Query, Row, Statement
from haive_persistence.errors import CodecError, ConflictError, DecodeError, TamperedError, WrongKeyError
from haive_persistence.keys import PlaintextRowError, Sealing

PAGE = 64
LARGEST_PAGE = 1024  # of checkpoints that only their metadata decides about
GC_MIN_PIECES = 500  # decoded at once, from which on they are declared old to the garbage collector


class Reads:
    """Reads one tenant's threads."""

    def __init__(self, context: TenantContext, left_behind: LeftBehind, views: Views) -> None:
        self._context = context
        self._left_behind = left_behind
        self.views = views

    async def get_tuple(self, db: Db, config: Config) -> CheckpointTuple | None:
        found = await self._context.with_all_keys(db, lambda: self._get_tuple(db, config))
        if found is None:
            await self._left_behind.warn_once(db)
        return found

    async def _get_tuple(self, db: Db, config: Config) -> CheckpointTuple | None:
        return await self.read(db, Address(config, self._context.tenant))

    async def read(self, db: Db, address: Address) -> CheckpointTuple | None:
        """The checkpoint of an address, as its branch shows it."""
        for _ in range(ATTEMPTS):
            try:
                found = await self._read_as_named(db, address)
                if found is None and address.checkpoint_id is not None and address.branch is None:
                    return await self._read_elsewhere(db, address, address.checkpoint_id)
            except ViewChanged:
                continue
            return found
        raise ConflictError(
            f"the branches of thread {address.thread_id!r} change faster than they can be read"
        )

    async def _read_as_named(self, db: Db, address: Address) -> CheckpointTuple | None:
        view = await self.views.names.view(db, address)
        if view is None:
            return await self._read(db, address)
        return await self.views.get_tuple(db, address, view)

    async def _read_elsewhere(self, db: Db, address: Address, id_: bytes) -> CheckpointTuple | None:
        """A checkpoint of a config without a branch that `main` does not show; its config names its line."""
        if self._context.cache.get(address.thread.bytes) is None:
            return None  # there is no such thread
        line_no = await self.views.line_of(db, address, id_)
        if line_no is None:
            return None
        there = address.on_branch(line_name(line_no))
        view = await self.views.names.view(db, there)
        return None if view is None else await self.views.get_tuple(db, there, view)

    async def _read(self, db: Db, address: Address) -> CheckpointTuple | None:
        codec = await self._context.codec(db)
        params: dict[str, Any] = {"thread": address.thread, "ns_key": address.ns_key}
        name = "get_latest"
        if address.checkpoint_id is not None:
            name, params["id"] = "get_one", address.checkpoint_id
        again = StaleReadRetry(self._context.cache)
        queries = self._context.queries
        for _ in range(ATTEMPTS):
            is_known = self._context.cache.get(address.thread.bytes) is not None
            query = queries.render(name, more="" if is_known else queries.part("first_pieces"))
            rows = await db.fetch_all(query, params, idempotent=True)
            reader, stored = self.open(rows, address, codec)
            if reader is not None and reader.log.main_line is not None:
                raise ViewChanged(reader.log.epoch or 0)
            if reader is None or not stored:
                return None
            try:
                missing = reader.needed(stored)
                if missing:
                    await reader.fetch(db, missing)
                with no_garbage_collection(many=len(missing) > GC_MIN_PIECES):
                    found = reader.checkpoint_tuple(stored[0])
                    reader.record(stored[0])
            except StaleRead as stale:
                again.forget(stale)
                continue
            reader.keep_small()
            reader.settle()
            return found
        raise again.final_error(f"thread {address.thread_id!r}")

    def open(
        self, rows: Sequence[tuple[Any, ...]], address: Address, codec: Sealing
    ) -> tuple[ThreadReader | None, list[StoredCheckpoint]]:
        """Rows of a query on one namespace; checkpoints in order of their depth."""
        epoch, main_line = next(((row[2], row[4]) for row in rows if row[0] == "t"), (None, None))
        if epoch is None:
            known = self._context.cache.get(address.thread.bytes)
            if known is not None and known.exists:
                self._context.cache.drop(address.thread.bytes, known)
            return None, []
        reader = self._context.reader(codec, address.thread, epoch)
        if main_line is not None:
            reader.log.main_line = int.from_bytes(main_line, "big")
        ns_key = address.ns_key
        writes: dict[bytes, list[records.Write]] = {}
        for kind, id_, number, _, payload in rows:
            if kind == "s":
                reader.open_sequence(number, payload)
            elif kind == "p":
                reader.unopened[number] = payload
            elif kind == "w":
                writes.setdefault(id_, []).append(reader.open_write(ns_key, id_, number, payload))
        stored = [
            (
                depth,
                StoredCheckpoint(
                    address.thread,
                    address.given_thread_id,
                    ns_key,
                    id_,
                    parent,
                    reader.open_body(ns_key, id_, parent, payload),
                    writes.get(id_, []),
                ),
            )
            for kind, id_, depth, parent, payload in rows
            if kind == "c"
        ]
        return reader, [s for _, s in sorted(stored, key=lambda pair: pair[0])]

    async def list(
        self,
        db: Db,
        config: Config | None,
        *,
        filter: Mapping[str, Any] | None,
        before: Config | None,
        limit: int | None,
    ) -> AsyncIterator[CheckpointTuple]:
        check_mapping("filter", filter)
        left = check_limit(limit)
        name, params, thread_id = self._list_query(config, before)
        if config is not None:
            view = await self.views.names.view(db, Address(config, self._context.tenant))
            if view is not None:
                async for found in self._list_view(db, config, view, filter, params, left, None):
                    yield found
                return
        queries = self._context.queries
        whole = _Listing(queries.render(name, signature_check=""), thread_id, None)
        listing = whole._replace(filter=filter)
        signature = await self._signature(db, filter) if filter else None
        if signature is not None:
            query = queries.render(name, signature_check=queries.part("has_signature"))
            listing = listing._replace(query=query)
            params |= signature
        most, largest = PAGE, LARGEST_PAGE if filter and signature is None else PAGE
        while left is None or left > 0:
            wanted = most if left is None or (filter and signature is None) else min(most, left)
            try:
                page, size = await self._fitting_page(db, listing, {**params, "limit": wanted})
            except ViewChanged as changed:  # `main` was moved
                if config is None:
                    raise
                after, view = None, await self.views.names.ask(db, Address(config, self._context.tenant))
                if params["after_id"] is not None:  # goes on along the line where it began
                    after = PlaceInView(0, params["after_id"], params["after_ns"])
                    view = View(changed.epoch, (Line(FIRST_LINE),))
                if view is not None:
                    async for found in self._list_view(db, config, view, filter, params, left, after):
                        yield found
                return
            if page.last is None and config is not None and params["after_id"] is None:
                # Nothing on the first line: `main` may mean another one, of which no row told.
                view = await self.views.names.ask(db, Address(config, self._context.tenant))
                if view is not None:
                    async for found in self._list_view(db, config, view, filter, params, left, None):
                        yield found
                    return
            largest = size if size < wanted else largest
            most = min(2 * most, largest)
            for found in page.tuples:
                yield found
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            if page.last is None or page.size < size:
                break
            params |= {
                "after_id": page.last.id,
                "after_ns": page.last.ns_key,
                "after_thread": page.last.thread,
                "last_key": listing_key(self._context.tenant, page.last.id),
            }
        if signature is not None and left == limit:
            # Under another key, signatures are others: reading any checkpoint raises the error for it.
            params |= {"after_id": None, "limit": 1}
            params["last_key"] = listing_key(self._context.tenant, ABOVE_ALL_IDS)
            await self._checked_page(db, whole._replace(thread_id=None), params)

    async def _list_view(
        self,
        db: Db,
        config: Config,
        view: View,
        filter: Mapping[str, Any] | None,
        params: Mapping[str, Any],
        limit: int | None,
        after: PlaceInView | None,
    ) -> AsyncIterator[CheckpointTuple]:
        """A listing through a branch, from its start or after a place on the line where it began."""
        address = Address(config, self._context.tenant)
        signature = await self._signature(db, filter) if filter else None
        for _ in range(ATTEMPTS):
            try:
                async for found in self.views.list(
                    db,
                    address,
                    view,
                    all_namespaces=config["configurable"].get("checkpoint_ns") is None,
                    filter=filter,
                    before=params["before"],
                    signature=signature,
                    limit=limit,
                    after=after,
                ):
                    yield found
                return
            except ViewChanged:  # nothing was listed yet
                now = await self.views.names.ask(db, address)
                if now is None:
                    return
                view = now
        raise ConflictError(
            f"the branches of thread {address.thread_id!r} change faster than they can be read"
        )

    async def _signature(self, db: Db, filter: Mapping[str, Any]) -> dict[str, int] | None:
        await self._context.settle_plaintext(db)
        codec = await self._context.codec(db)
        if codec.sealed and codec.keys.index_key is None:
            return None
        return filter_signature(filter, codec.keys.index_key)

    def _list_query(self, config: Config | None, before: Config | None) -> tuple[str, dict[str, Any], Any]:
        params: dict[str, Any] = {"before": None, "after_id": None, "after_ns": None, "after_thread": None}
        params["first_key"] = listing_key(self._context.tenant, b"")
        params["last_key"] = listing_key(self._context.tenant, ABOVE_ALL_IDS)
        if before is not None and (id_ := checkpoint_id_of(configurable_of(before, "before"))) is not None:
            params |= {"before": id_, "last_key": listing_key(self._context.tenant, id_)}
        if config is None:
            return "list_all", params, None
        address = Address(config, self._context.tenant)
        any_ns = (config["configurable"]).get("checkpoint_ns") is None
        params |= {"thread": address.thread, "ns_key": None if any_ns else address.ns_key}
        if address.checkpoint_id is not None:
            return "list_one", params | {"id": address.checkpoint_id}, address.given_thread_id
        return "list_thread" if any_ns else "list_namespace", params, address.given_thread_id

    async def _fitting_page(self, db: Db, listing: _Listing, params: Mapping[str, Any]) -> tuple[Page, int]:
        """A page and its limit, which is lower where so many checkpoints are too large for one read."""
        size: int = params["limit"]
        while True:
            try:
                page = await self._checked_page(db, listing, {**params, "limit": size})
            except DecodeError:
                if size == 1:
                    raise
                size //= 2
            else:
                return page, size

    async def _checked_page(self, db: Db, listing: _Listing, params: Mapping[str, Any]) -> Page:
        """A page; where all threads are listed, with those checkpoints marked that cannot be read."""
        try:
            return await self._context.with_all_keys(db, partial(self._page, db, listing, params))
        except CodecError:
            if listing.thread_id is not None:
                raise
        rows = await self._rows(db, listing, params)
        thread_ids = {thread: text for kind, thread, *_, text, _ in rows if kind == "t"}
        keys = [(thread, ns_key, id_) for kind, thread, ns_key, id_, *_ in rows if kind == "c"]
        tuples = [
            await self._read_or_mark(
                db, Address.of_row(thread, thread_ids[thread], ns_key, id_), listing.filter
            )
            for thread, ns_key, id_ in keys
            if thread in thread_ids
        ]
        return Page([t for t in tuples if t is not None], Position(*keys[-1]) if keys else None, len(keys))

    async def _rows(self, db: Db, listing: _Listing, params: Mapping[str, Any]) -> Sequence[Row]:
        """The rows of a page; of all threads, read in the order of the index."""
        statement = Statement(listing.query, params)
        if listing.thread_id is not None:
            return await db.fetch_all(*statement, idempotent=True)
        prefer_order = Statement(self._context.queries["prefer_order"])
        return (await db.batch([prefer_order, statement], idempotent=True))[1]

    async def _read_or_mark(
        self, db: Db, address: Address, filter: Mapping[str, Any] | None
    ) -> CheckpointTuple | None:
        codec = await self._context.codec(db)
        try:
            self._check_thread_id(address.thread, address.thread_id)
            found = await self._context.with_all_keys(db, lambda: self._read(db, address))
        except CodecError as error:
            if isinstance(error, WrongKeyError) and not codec.keys.numbers:
                raise  # this process has no key at all: it is not the row
            may_be_old = codec.keys.plaintext_threads or not codec.keys.numbers
            is_unsealed = may_be_old and isinstance(error, PlaintextRowError)
            kind = UnsealedCheckpoint if is_unsealed else DamagedCheckpoint
            unread = kind.of(address.thread_id, decode_id(address.checkpoint_id or b""), error)
            return None if filter else unread
        matches = found is not None and (not filter or contains(found.metadata, filter))
        return found if matches else None

    def _check_thread_id(self, thread: uuid.UUID, thread_id: str) -> None:
        if thread_key(self._context.tenant, thread_id) != thread:
            raise TamperedError(
                f"the id {thread_id!r} is not that of the thread it stands at: a row was changed"
            )

    async def _page(self, db: Db, listing: _Listing, params: Mapping[str, Any]) -> Page:
        _, thread_id, filter = listing
        codec = await self._context.codec(db)
        again = StaleReadRetry(self._context.cache)
        for _ in range(ATTEMPTS):
            rows = await self._rows(db, listing, params)
            found, readers = open_rows(
                rows, lambda thread, epoch: self._context.reader(codec, thread, epoch), thread_id
            )
            last = Position(found[-1].thread, found[-1].ns_key, found[-1].id) if found else None
            size = len(found)
            for reader in readers.values():
                if thread_id is not None and reader.log.main_line is not None:
                    raise ViewChanged(reader.log.epoch or 0)
            if thread_id is None:
                for stored in found:
                    self._check_thread_id(stored.thread, stored.thread_id)
            try:
                if filter:
                    await fetch_missing(db, readers, found, "metadata")
                    found = [s for s in found if contains(readers[s.thread.int].metadata(s.body), filter)]
                await fetch_missing(db, readers, found)
                with no_garbage_collection(many=len(found) > 1):
                    tuples = [readers[s.thread.int].checkpoint_tuple(s) for s in found]
                for reader in readers.values():
                    reader.settle()
                return Page(tuples, last, size)
            except StaleRead as stale:
                again.forget(stale)
        raise again.final_error("a thread of those listed")


class _Listing(NamedTuple):
    """The checkpoints that are listed."""

    query: Query
    thread_id: Any  # as the caller wrote it; None for the threads of a whole tenant
    filter: Mapping[str, Any] | None


class Position(NamedTuple):
    """The end of a page of a listing."""

    thread: uuid.UUID
    ns_key: int
    id: bytes


class Page(NamedTuple):
    """A page of a listing; `size` counts what the filter left out too."""

    tuples: Sequence[CheckpointTuple]
    last: Position | None
    size: int


async def fetch_missing(
    db: Db, readers: Mapping[int, ThreadReader], stored: Sequence[StoredCheckpoint], want: str = "all"
) -> None:
    """Bring what some checkpoints need into memory."""
    by_thread: dict[int, list[StoredCheckpoint]] = {}
    for s in stored:
        by_thread.setdefault(s.thread.int, []).append(s)
    await fetch_pieces(db, [(readers[t], readers[t].needed(of, want)) for t, of in by_thread.items()])
