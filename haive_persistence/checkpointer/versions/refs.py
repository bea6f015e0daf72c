"""Branches and tags: create, list, rename, protect, delete; and the log of what was done."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer.context import ATTEMPTS, TenantContext
from haive_persistence.checkpointer.ids import ROOT_NS_KEY, Address, decode_id, line_name
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, Line, View
from haive_persistence.checkpointer.versions.locate import Locator
from haive_persistence.checkpointer.versions.names import MAIN, check_name, name_key, remember_view
from haive_persistence.checkpointer.versions.records import Branch, Operation, Said, Tag
from haive_persistence.checkpointer.versions.ref_records import (
    Ref,
    open_operation,
)
from haive_persistence.checkpointer.versions.ref_rows import FIRST, Locked, RefRows, taken
from haive_persistence.checkpointer.versions.views import ViewChanged, Views
from haive_persistence.db.protocol import Db, Statement
from haive_persistence.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ProtectedError,
)
from haive_persistence.keys import Sealing

T = TypeVar("T")
UNIQUE_VIOLATION = "23505"


class Start(NamedTuple):
    """The start of a branch, as parameters of the statement that looks there."""

    id: bytes | None  # None: the latest of `home_line`
    base_line: int
    home_line: int
    next_line: int
    base_writes: list[int] | None


def branch_start(view: View, id_: bytes, home: int) -> Start:
    """The start of a branch at a checkpoint that a view shows, which is on the line `home`."""
    own = view.own
    is_start = own.base is not None and id_ == own.start and home == own.home
    next_line = own.no if home == own.no or is_start else home
    return Start(id_, own.no, home, next_line, sorted(own.base_writes) if is_start else None)


class Refs:
    """The branches and tags of one tenant's threads."""

    def __init__(self, context: TenantContext, views: Views) -> None:
        self._context = context
        self._views = views
        self._queries = views.names.queries
        self._rows = RefRows(context, views.names.queries)
        self.locator = Locator(context, views.names)

    # --- create

    async def create_branch(
        self, db: Db, named: object, name: str, metadata: Mapping[str, Any], said: Said, thread_id: object
    ) -> Branch:
        """Make a branch: see `Checkpointer.create_branch`."""
        check_name("branch_name", name)
        create = partial(self._create_branch_at, db, name, metadata, said)
        return await self._where_shown(db, named, thread_id, create)

    async def _create_branch_at(
        self, db: Db, name: str, metadata: Mapping[str, Any], said: Said, address: Address
    ) -> Branch:
        ref_no = secrets.randbits(62) | 1
        for _ in range(ATTEMPTS):
            try:
                view = await self._views.names.view(db, address)
                epoch = await self._epoch(db, address, view)
                start = await self._start(db, address, view)
            except ViewChanged:
                continue
            codec = await self._context.codec_to_write(db)
            ref = FIRST._replace(
                ref_no=ref_no,
                name_key=name_key(codec, name),
                base_line=start.base_line,
                home_line=start.home_line,
                name=name,
                metadata=metadata,
            )
            create = self._create_sealed if codec.sealed else self._create
            made = await _unless_taken(create(db, codec, address, epoch, start, ref, said))
            if made is None:
                made = await self._explain(db, codec, address, ref, epoch)
            if made is not None:
                self._remember(address, epoch, view, made)
                return _branch(made, address.given_thread_id)
        raise ConflictError(f"thread {address.thread_id!r} changes over and over; try again", sqlstate=None)

    async def _where_shown(
        self, db: Db, named: object, thread_id: object, create: Callable[[Address], Awaitable[T]]
    ) -> T:
        """Create at the checkpoint that is named; without a branch, on whichever line it is."""
        address = await self.locator.locate(db, named, thread_id)
        if address.ns:
            raise InvalidInputError(
                "branches and tags are of checkpoints of the graph itself, not of a subgraph"
            )
        try:
            return await create(address)
        except NotFoundError:
            id_ = address.checkpoint_id
            line_no = None if id_ is None or address.branch else await self._views.line_of(db, address, id_)
            if line_no is None:
                raise
        return await create(address.on_branch(line_name(line_no)))

    async def _epoch(self, db: Db, address: Address, view: View | None) -> int:
        if view is not None:
            return view.epoch
        log = self._context.cache.get(address.thread.bytes)
        if log is not None and log.epoch is not None:
            return log.epoch
        now = await db.fetch_one(self._queries["thread_now"], {"thread": address.thread}, idempotent=True)
        if now is None:
            raise NotFoundError(f"there is no thread {address.thread_id!r}")
        log = self._context.cache.at_epoch(address.thread.bytes, now[0])
        log.main_line = now[1]
        if now[1] is not None:
            raise ViewChanged(now[0])
        return int(now[0])

    async def _start(self, db: Db, address: Address, view: View | None) -> Start:
        """The start of a branch of a checkpoint: on which line of the view it is."""
        id_ = address.checkpoint_id
        if view is None:
            return Start(id_, FIRST_LINE, FIRST_LINE, FIRST_LINE, None)
        found = await self._views.home_of(db, address, view)
        if found is None:
            raise NotFoundError(_no_checkpoint(address))
        return branch_start(view, *found)

    def _params(self, address: Address, epoch: int, start: Start) -> dict[str, Any]:
        return {
            "thread": address.thread,
            "epoch": epoch,
            "root_key": ROOT_NS_KEY,
            "now_id": uuid6().bytes,
            **start._asdict(),
        }

    async def _create(
        self, db: Db, codec: Sealing, address: Address, epoch: int, start: Start, ref: Ref, said: Said
    ) -> Ref | None:
        """Make a branch in one round trip. None if it was not made."""
        guard = self._queries.part("tenant_has_no_data_key")
        columns = ref.params(codec, address.thread)
        query = self._queries.render("create_branch", data_key_check=guard)
        params = {**columns, **self._params(address, epoch, start)}
        details = {"base": None if start.id is None else decode_id(start.id)}
        operation = self._rows.operation(codec, address, "create_branch", ref, said, details)
        (rows, _) = await db.batch([Statement(query, params), operation], idempotent=True)
        if not rows:
            return None
        id_, cut, is_passed, base_writes, at = rows[0]
        return ref._replace(
            checkpoint_id=id_, cut_id=cut, is_passed=is_passed, base_writes=base_writes, created_at=at
        )

    async def _create_sealed(
        self, db: Db, codec: Sealing, address: Address, epoch: int, start: Start, ref: Ref, said: Said
    ) -> Ref | None:
        """Make a branch whose row says, sealed, where it starts: that must be known first."""
        async with db.transaction() as tx:
            now = await self._rows.lock(tx, codec, address.thread)
            if now is None or now[0] != epoch:
                return None
            if await self._rows.named(tx, codec, address, ref.name) is not None:
                return None
            found = await tx.fetch_one(self._queries["start_of_branch"], self._params(address, epoch, start))
            if found is None:
                return None
            id_, cut, is_passed, base_writes = found
            made = ref._replace(checkpoint_id=id_, cut_id=cut, is_passed=is_passed, base_writes=base_writes)
            details = {"base": decode_id(id_)}
            await tx.batch(
                [
                    self._rows.insert(codec, address, made),
                    self._rows.operation(codec, address, "create_branch", made, said, details),
                ]
            )
        return made

    async def _explain(self, db: Db, codec: Sealing, address: Address, ref: Ref, epoch: int) -> Ref | None:
        """After a branch was not made: raise the reason, unless the thread only changed meanwhile.

        Returns the branch if it was made after all, and only the answer was lost.
        """
        await self._context.keys.refresh_to_write(db)
        stored = await self._rows.named(db, codec, address, ref.name)
        if stored is not None and stored.ref_no == ref.ref_no:
            return stored
        if stored is not None:
            raise taken(ref.name, address)
        now = await db.fetch_one(self._queries["thread_now"], {"thread": address.thread}, idempotent=True)
        if now is not None and now[0] == epoch:
            raise NotFoundError(_no_checkpoint(address))
        self._context.cache.drop(address.thread.bytes)
        return None

    def _remember(self, address: Address, epoch: int, view: View | None, made: Ref) -> None:
        log = self._context.cache.get(address.thread.bytes)
        if log is not None and log.epoch == epoch:
            below = (Line(FIRST_LINE),) if view is None else view.lines
            remember_view(log, made.name, View(epoch, (made.line(), *below)))

    async def create_tag(
        self, db: Db, named: object, name: str, metadata: Mapping[str, Any], said: Said, thread_id: object
    ) -> Tag:
        """Name a checkpoint: see `Checkpointer.create_tag`."""
        check_name("name", name)
        create = partial(self._create_tag_at, db, name, metadata, said)
        return await self._where_shown(db, named, thread_id, create)

    async def _create_tag_at(
        self, db: Db, name: str, metadata: Mapping[str, Any], said: Said, address: Address
    ) -> Tag:
        for _ in range(ATTEMPTS):
            try:
                view = await self._views.names.view(db, address)
                epoch = await self._epoch(db, address, view)
            except ViewChanged:
                continue
            codec = await self._context.codec_to_write(db)
            view = view or View(epoch, (Line(FIRST_LINE),))
            try:
                found = await self._views.home_of(db, address, view)
            except ViewChanged:
                continue
            if found is None:
                raise NotFoundError(_no_checkpoint(address))
            made = await _unless_taken(
                self._create_tag(db, codec, address, epoch, found, name, metadata, said)
            )
            if made is not None:
                return _tag(made, address.given_thread_id, self._branch_of_home(address, view, found[1]))
            self._context.cache.drop(address.thread.bytes)
        raise ConflictError(f"thread {address.thread_id!r} changes over and over; try again", sqlstate=None)

    async def _create_tag(
        self,
        db: Db,
        codec: Sealing,
        address: Address,
        epoch: int,
        found: tuple[bytes, int],
        name: str,
        metadata: Mapping[str, Any],
        said: Said,
    ) -> Ref | None:
        id_, home = found
        async with db.transaction() as tx:
            now = await self._rows.lock(tx, codec, address.thread)
            if now is None or now[0] != epoch:
                return None
            if await self._rows.named(tx, codec, address, name) is not None:
                raise taken(name, address)
            ref = FIRST._replace(
                ref_no=secrets.randbits(62) | 1,
                name_key=name_key(codec, name),
                home_line=home,
                checkpoint_id=id_,
                is_tag=True,
                name=name,
                metadata=metadata,
            )
            rows = await tx.batch(
                [
                    self._rows.insert(codec, address, ref),
                    self._rows.operation(
                        codec, address, "create_tag", ref, said, {"checkpoint": decode_id(id_)}
                    ),
                ]
            )
            return ref._replace(created_at=rows[0][0][0])

    def _branch_of_home(self, address: Address, view: View, home: int) -> str | None:
        """The branch of a line that a view shows, as a config names it."""
        log = self._context.cache.get(address.thread.bytes)
        main_line = None if log is None else log.main_line
        if home == (main_line or FIRST_LINE):
            return None
        if home == view.own.no and address.branch is not None:
            return address.branch
        return view.lines[view.place_of(home) or 0].name or line_name(home)

    # --- list

    async def branches(self, db: Db, thread_id: object, *, unnamed: bool) -> list[Branch]:
        """The branches of a thread, `main` first, then by when they were made."""
        address = self._rows.thread(thread_id)
        main_line, refs = await self._rows.all(db, address)
        by_no = {ref.ref_no: ref for ref in refs if not ref.is_tag}
        first = by_no.get(main_line or FIRST_LINE)
        base = None if first is None or first.base_line is None else decode_id(first.checkpoint_id or b"")
        main = Branch(
            name=MAIN,
            thread_id=thread_id,
            base=base,
            is_protected=first is not None and first.is_protected,
        )
        by_no.pop(main_line or FIRST_LINE, None)
        if unnamed and main_line:
            by_no.setdefault(FIRST_LINE, FIRST)
        shown = sorted(
            (ref for ref in by_no.values() if unnamed or ref.is_named),
            key=lambda ref: str(ref.created_at or ""),
        )
        named = [ref if ref.is_named else ref._replace(name=line_name(ref.ref_no)) for ref in shown]
        return [main, *(_branch(ref, thread_id) for ref in named)]

    async def tags(self, db: Db, thread_id: object) -> list[Tag]:
        """The tags of a thread, by when they were made."""
        address = self._rows.thread(thread_id)
        main_line, refs = await self._rows.all(db, address)
        names = {ref.ref_no: ref.name for ref in refs if not ref.is_tag and ref.is_named}
        tags = sorted(
            (ref for ref in refs if ref.is_tag and ref.is_named), key=lambda ref: str(ref.created_at)
        )

        def branch_of(ref: Ref) -> str | None:
            line_no = ref.home_line or FIRST_LINE
            return None if line_no == (main_line or FIRST_LINE) else names.get(line_no, line_name(line_no))

        return [_tag(ref, thread_id, branch_of(ref)) for ref in tags]

    async def log(self, db: Db, thread_id: object) -> list[Operation]:
        """The operations on the names of a thread, oldest first."""
        address = self._rows.thread(thread_id)

        async def read() -> list[Operation]:
            codec = await self._context.codec(db)
            rows = await db.fetch_all(
                self._queries["operations_of_thread"], {"thread": address.thread}, idempotent=True
            )
            return [
                operation_of(id_, at, open_operation(codec, address.thread, id_, payload))
                for id_, at, payload in rows
            ]

        return await self._context.with_all_keys(db, read)

    # --- change

    async def rename_branch(self, db: Db, thread_id: object, name: str, new_name: str, said: Said) -> Branch:
        """Give a branch another name: see `Checkpointer.rename_branch`."""
        check_name("new_name", new_name)
        _not_main(name)

        async def rename(locked: Locked) -> Ref:
            ref = await self._unprotected(locked, name)
            await self._rows.check_free(locked, new_name)
            renamed = ref._replace(name=new_name, name_key=name_key(locked.codec, new_name))
            await self._save(locked, "rename_branch", ref, renamed, said, {"new_name": new_name})
            return renamed

        return _branch(await self._rows.changing(db, thread_id, rename), thread_id)

    async def delete_branch(self, db: Db, thread_id: object, name: str, said: Said) -> None:
        """Take a branch's name away: see `Checkpointer.delete_branch`."""
        _not_main(name)

        async def delete(locked: Locked) -> None:
            ref = await self._unprotected(locked, name)
            await self._save(locked, "delete_branch", ref, ref._replace(name_key=None), said, {})

        await self._rows.changing(db, thread_id, delete)

    async def protect_branch(
        self, db: Db, thread_id: object, name: str, said: Said, *, protected: bool
    ) -> Branch:
        """Let runs add to a branch no more, or again: see `Checkpointer.protect_branch`."""

        async def protect(locked: Locked) -> Ref:
            ref = await self._rows.wanted(locked, name)
            changed = ref._replace(is_protected=protected)
            address, codec = locked.address, locked.codec
            statements = [
                self._rows.insert(codec, address, changed)
            ]  # of the first line, if it has no row yet
            if ref.ref_no == FIRST_LINE:
                # Readers and writers look at `main` only where the thread's row says there is something.
                statements.append(self._rows.set_main_line(address, FIRST_LINE))
            await locked.tx.batch(statements)
            await self._save(locked, "protect_branch", ref, changed, said, {"protected": protected}, name)
            return changed

        ref = await self._rows.changing(db, thread_id, protect)
        return _branch(ref._replace(name=name), thread_id)

    async def delete_tag(self, db: Db, thread_id: object, name: str, said: Said) -> None:
        """Delete a tag: see `Checkpointer.delete_tag`."""

        async def delete(locked: Locked) -> None:
            ref = await self._rows.wanted(locked, name, is_tag=True)
            await self._save(locked, "delete_tag", ref, ref._replace(is_deleted=True), said, {})

        await self._rows.changing(db, thread_id, delete)

    async def _unprotected(self, locked: Locked, name: str) -> Ref:
        ref = await self._rows.wanted(locked, name)
        if ref.is_protected:
            raise ProtectedError(f"branch {name!r} of thread {locked.address.thread_id!r} is protected")
        return ref

    async def _save(
        self,
        locked: Locked,
        kind: str,
        before: Ref,
        after: Ref,
        said: Said,
        details: Mapping[str, Any],
        name: str | None = None,
    ) -> None:
        """Change a row and record it."""
        codec, address = locked.codec, locked.address
        await locked.tx.batch(
            [
                self._rows.update(codec, address, after),
                self._rows.operation(codec, address, kind, before, said, details, name),
            ]
        )


def _no_checkpoint(address: Address) -> str:
    wanted = "" if address.checkpoint_id is None else f" {decode_id(address.checkpoint_id)!r}"
    return f"there is no checkpoint{wanted} on {address.branch or MAIN!r} of thread {address.thread_id!r}"


async def _unless_taken(creating: Awaitable[Ref | None]) -> Ref | None:
    """Return what was made; None if another process took the name at the same time."""
    try:
        return await creating
    except ConflictError as error:
        if error.sqlstate == UNIQUE_VIOLATION:
            return None
        raise


def _not_main(name: str) -> None:
    if name == MAIN:
        raise InvalidInputError('"main" is the thread itself: it is neither renamed nor deleted')


def _branch(ref: Ref, thread_id: Any) -> Branch:
    return Branch(
        name=ref.name,
        thread_id=thread_id,
        base=None if ref.checkpoint_id is None else decode_id(ref.checkpoint_id),
        is_protected=ref.is_protected,
        created_at=ref.created_at,
        metadata=ref.metadata,
    )


def _tag(ref: Ref, thread_id: Any, branch: str | None) -> Tag:
    return Tag(
        name=ref.name,
        thread_id=thread_id,
        checkpoint_id=decode_id(ref.checkpoint_id or b""),
        branch=branch,
        created_at=ref.created_at,  # type: ignore[arg-type]  # set when it is stored
        metadata=ref.metadata,
    )


def operation_of(id_: uuid.UUID, at: Any, fields: Mapping[str, Any]) -> Operation:
    return Operation(
        id=str(id_),
        at=at,
        kind=fields["kind"],
        name=fields["name"],
        by=fields["by"],
        why=fields["why"],
        details=fields["details"],
    )
