"""Rows of `ref` and `operation` in transactions: locked, read, changed, recorded."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import Address, thread_id_text
from haive_persistence.checkpointer.storage.piece_index import new_epoch
from haive_persistence.checkpointer.versions.lines import FIRST_LINE
from haive_persistence.checkpointer.versions.names import MAIN, name_key
from haive_persistence.checkpointer.versions.records import Said, config_of
from haive_persistence.checkpointer.versions.ref_records import Ref, open_ref, pack_operation
from haive_persistence.db.protocol import Db, Executor, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.errors import NameTakenError, NotFoundError
from haive_persistence.keys import Sealing

T = TypeVar("T")


class Locked(NamedTuple):
    """A thread whose row is locked by a transaction."""

    tx: Executor
    codec: Sealing
    address: Address
    epoch: int
    main_line: int | None


class RefRows:
    """Reads and changes the rows of one tenant's threads."""

    def __init__(self, context: TenantContext, queries: Queries) -> None:
        self._context = context
        self.queries = queries

    def thread(self, thread_id: object) -> Address:
        thread_id_text(thread_id)
        return Address(config_of(thread_id, None), self._context.tenant)

    async def lock(
        self, tx: Executor, codec: Sealing, thread: uuid.UUID, how: str = "share_thread"
    ) -> Sequence[Any] | None:
        """The thread's epoch and main line, which stay so until the transaction ends."""
        if not codec.sealed:
            await self._context.keys.data_keys.check_plaintext(tx, self._context.tenant)
        return await tx.fetch_one(self.queries[how], {"thread": thread})

    async def changing(
        self, db: Db, thread_id: object, work: Callable[[Locked], Awaitable[T]], *, only_adds: bool = False
    ) -> T:
        """Change rows under the thread's lock, and the epoch with them: what processes remember is stale.

        This process goes on with what it knows of the thread's pieces. `only_adds`: nothing that anybody may
        remember is changed.
        """
        address = self.thread(thread_id)
        cache = self._context.cache

        async def once() -> T:
            codec = await self._context.codec_to_write(db)
            async with db.transaction() as tx:
                now = await self.lock(tx, codec, address.thread, "take_thread")
                if now is None:
                    raise NotFoundError(f"there is no thread {address.thread_id!r}")
                done = await work(Locked(tx, codec, address, *now))
                if only_adds:
                    return done
                epoch = {"thread": address.thread, "epoch": new_epoch()}
                after = await tx.fetch_one(self.queries["new_epoch"], epoch)
            if after is not None:
                cache.advance(address.thread.bytes, now[0], *after)
            return done

        return await self._context.retrying(
            f"thread {address.thread_id!r}", lambda: self._context.with_all_keys(db, once)
        )

    async def wanted(self, locked: Locked, name: str, *, is_tag: bool = False) -> Ref:
        """The row of a branch or tag. Raises NotFoundError if there is none."""
        if name == MAIN and not is_tag:
            return await self.by_no(locked, locked.main_line or FIRST_LINE)
        found = await self.named(locked.tx, locked.codec, locked.address, name)
        if found is None or found.is_tag != is_tag or found.is_deleted:
            what = "tag" if is_tag else "branch"
            raise NotFoundError(f"thread {locked.address.thread_id!r} has no {what} {name!r}")
        return found

    async def by_no(self, locked: Locked, ref_no: int) -> Ref:
        """The row of a line or tag. Raises NotFoundError if it was pruned."""
        params = {"thread": locked.address.thread, "ref_no": ref_no}
        row = await locked.tx.fetch_one(self.queries["ref_by_no"], params)
        if row is not None:
            return open_ref(locked.codec, locked.address.thread, row)
        if ref_no == FIRST_LINE:
            return FIRST
        raise NotFoundError(f"what thread {locked.address.thread_id!r} had there was pruned")

    async def named(self, tx: Executor, codec: Sealing, address: Address, name: str) -> Ref | None:
        """The row that has a name, a deleted tag's included."""
        params = {"thread": address.thread, "name_key": name_key(codec, name)}
        row = await tx.fetch_one(self.queries["ref_by_name"], params)
        return None if row is None else open_ref(codec, address.thread, row)

    async def check_free(self, locked: Locked, name: str) -> None:
        """Raise NameTakenError if a branch or tag has the name, or a tag had it."""
        if await self.named(locked.tx, locked.codec, locked.address, name) is not None:
            raise taken(name, locked.address)

    async def all(self, db: Db, address: Address) -> tuple[int | None, list[Ref]]:
        """The line that `main` means, and every line and tag. Raises NotFoundError if there is no thread."""

        async def read() -> tuple[int | None, list[Ref]]:
            codec = await self._context.codec(db)
            params = {"thread": address.thread}
            names = ("thread_now", "refs_of_thread")
            now, rows = await db.batch([Statement(self.queries[n], params) for n in names], idempotent=True)
            if not now:
                raise NotFoundError(f"there is no thread {address.thread_id!r}")
            return now[0][1], [open_ref(codec, address.thread, row) for row in rows]

        return await self._context.with_all_keys(db, read)

    def insert(self, codec: Sealing, address: Address, ref: Ref) -> Statement:
        return Statement(self.queries["insert_ref"], self._row(codec, address, ref))

    def update(self, codec: Sealing, address: Address, ref: Ref) -> Statement:
        return Statement(self.queries["update_ref"], self._row(codec, address, ref))

    def set_main_line(self, address: Address, line_no: int | None) -> Statement:
        params = {"thread": address.thread, "main_line": line_no}
        return Statement(self.queries["set_main_line"], params)

    def _row(self, codec: Sealing, address: Address, ref: Ref) -> dict[str, Any]:
        return {"thread": address.thread, **ref.params(codec, address.thread)}

    def operation(
        self,
        codec: Sealing,
        address: Address,
        kind: str,
        ref: Ref,
        said: Said,
        details: Mapping[str, Any],
        name: str | None = None,
    ) -> Statement:
        """The statement that records what was done to a branch or tag."""
        params = self._operation_row(codec, address, kind, said, details, name or ref.name, ref.ref_no)
        return Statement(self.queries["record_operation"], params)

    def unconditional_operation(
        self,
        codec: Sealing,
        address: Address,
        kind: str,
        said: Said,
        details: Mapping[str, Any],
        name: str,
    ) -> tuple[Statement, uuid.UUID]:
        """The same in a transaction that changed rows before; and the operation's id."""
        params = self._operation_row(codec, address, kind, said, details, name, None)
        return Statement(self.queries["insert_operation"], params), params["operation_id"]

    def _operation_row(
        self,
        codec: Sealing,
        address: Address,
        kind: str,
        said: Said,
        details: Mapping[str, Any],
        name: str,
        ref_no: int | None,
    ) -> dict[str, Any]:
        id_ = uuid6()
        fields = {
            "kind": kind,
            "name": name,
            "by": said.by,
            "why": said.why,
            "ref": ref_no,
            "details": dict(details),
        }
        return {
            "thread": address.thread,
            "operation_id": id_,
            "at": None,  # now
            "ref_no": ref_no,
            "payload": pack_operation(codec, address.thread, id_, fields),
        }


#: `main` where it was never moved or protected: it has no row yet.
FIRST = Ref(
    FIRST_LINE,
    None,
    None,
    None,
    None,
    None,
    None,
    is_tag=False,
    is_passed=False,
    is_protected=False,
    is_deleted=False,
    merge_line=None,
    merge_id=None,
    created_at=None,
    name=MAIN,
    metadata={},
)


def taken(name: str, address: Address) -> NameTakenError:
    return NameTakenError(
        f"thread {address.thread_id!r} has a branch or tag {name!r}, or had a tag of it: names of tags are "
        "not used again"
    )
