"""Moving what a name means: restore, and undo of whatever was done to names. Checkpoints stay as they are."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.base.id import uuid6

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import (
    ROOT_NS_KEY,
    Address,
    decode_id,
    encode_id,
    line_name,
    shown,
)
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.checkpointer.versions.ancestry_graph import Node
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, View
from haive_persistence.checkpointer.versions.names import MAIN, name_key
from haive_persistence.checkpointer.versions.records import Operation, Restored, Said, config_of
from haive_persistence.checkpointer.versions.ref_records import Ref, open_operation
from haive_persistence.checkpointer.versions.ref_rows import FIRST, Locked, RefRows
from haive_persistence.checkpointer.versions.refs import Refs, branch_start, operation_of
from haive_persistence.checkpointer.versions.side_effects import calls_since
from haive_persistence.codec.unbuilt import Unbuilt
from haive_persistence.db.protocol import Db
from haive_persistence.errors import ConflictError, InvalidInputError, NotFoundError, ProtectedError

Fields = dict[str, Any]  # of an operation, as they are recorded


class Moves:
    """Moves the names of one tenant's threads."""

    def __init__(self, context: TenantContext, reads: Reads, refs: Refs) -> None:
        self._context = context
        self._reads = reads
        self._names = reads.views.names
        self._views = reads.views
        self._locator = refs.locator
        self._rows = RefRows(context, self._names.queries)

    # --- restore

    async def restore(
        self, db: Db, named: object, said: Said, thread_id: object, *, validate_schema: bool
    ) -> Restored:
        """Move a branch back to a checkpoint: see `Checkpointer.restore`."""
        address = await self._locator.locate(db, named, thread_id)
        if address.checkpoint_id is None or address.ns:
            raise InvalidInputError(
                "restore takes a checkpoint of the graph itself: name it by its id or config"
            )
        found = await self._reads.get_tuple(db, address.config(address.checkpoint_id))
        if found is None:
            raise NotFoundError(
                f"there is no checkpoint {decode_id(address.checkpoint_id)!r} on branch "
                f"{address.branch or MAIN!r} of thread {address.thread_id!r}"
            )
        if validate_schema:
            _check_built(found.checkpoint["channel_values"])
        branch = await self._branch_to_move(db, address)
        now = await self._reads.get_tuple(db, config_of(address.given_thread_id, branch))

        async def move(locked: Locked) -> None:
            before = await self.position(locked, branch)
            line_no = await self._line_showing(locked, before["line"], encode_id(found.checkpoint["id"]))
            wanted = {"line": line_no, "head": found.checkpoint["id"]}
            if before != wanted:
                after = await self.point(locked, branch or MAIN, before, wanted)
                await self.record(locked, "restore", branch or MAIN, said, moved(before, after))

        await self._rows.changing(db, address.given_thread_id, move)
        values = found.checkpoint["channel_values"]
        pending = [] if now is None else [value for _, _, value in now.pending_writes or ()]
        present = [] if now is None else [*now.checkpoint["channel_values"].values(), *pending]
        return Restored(
            state=values,
            thread_id=address.given_thread_id,
            branch=branch,
            checkpoint_id=found.checkpoint["id"],
            side_effects=calls_since(values.values(), present),
        )

    async def _branch_to_move(self, db: Db, address: Address) -> str | None:
        """The branch of an address; of a line without a name, the branch that it was part of. None is `main`.

        Raises:
            InvalidInputError: If there is no such branch any more.
        """
        branch = address.branch
        if branch is not None and branch.startswith("@"):
            _, refs = await self._rows.all(db, address)
            name = next((ref.name for ref in refs if line_name(ref.ref_no) == branch), MAIN)
            if name != MAIN and not any(r.is_named and not r.is_tag and r.name == name for r in refs):
                raise InvalidInputError(
                    "the checkpoint is on no branch any more: make one there with create_branch()"
                )
            branch = name
        return None if branch == MAIN else branch

    # --- undo

    async def undo(self, db: Db, thread_id: object, operation: object, said: Said) -> Operation:
        """Take back an operation: see `Checkpointer.undo`."""
        wanted = operation.id if isinstance(operation, Operation) else operation
        if wanted is not None and not isinstance(wanted, str):
            raise InvalidInputError(f"operation must be one of log(), its id, or None, not {shown(wanted)}")

        async def revert(locked: Locked) -> Operation:
            rows = await locked.tx.fetch_all(
                self._rows.queries["operations_of_thread"], {"thread": locked.address.thread}
            )
            row = next((r for r in reversed(rows) if wanted is None or str(r[0]) == wanted), None)
            if row is None:
                what = "no operation" if wanted is None else f"no operation {wanted!r}"
                raise NotFoundError(f"thread {locked.address.thread_id!r} has {what} to undo: see log()")
            fields = open_operation(locked.codec, locked.address.thread, row[0], row[2])
            did = await self._revert(locked, fields)
            details = {"operation": str(row[0]), "did": did}
            id_ = await self.record(locked, "undo", fields["name"], said, details)
            (made,) = await locked.tx.fetch_all(
                self._rows.queries["operation_by_id"], {"thread": locked.address.thread, "operation_id": id_}
            )
            opened = open_operation(locked.codec, locked.address.thread, id_, made[1])
            return operation_of(id_, made[0], opened)

        return await self._rows.changing(db, thread_id, revert)

    async def _revert(self, locked: Locked, fields: Mapping[str, Any]) -> Fields:
        """Do the opposite of an operation, and return what was done, as if it were one."""
        kind, name, details = fields["kind"], fields["name"], fields["details"]
        if kind == "undo":
            return await self._revert(locked, details["did"])
        if "before" in details:
            return await self._move_back(locked, kind, name, details)
        ref = await self._rows.by_no(locked, fields["ref"])
        if kind == "create_branch":
            _check_as_left(ref.is_named and ref.name == name, kind, name)
            changed, did = ref._replace(name_key=None), "delete_branch"
        elif kind == "delete_branch":
            _check_as_left(ref.name_key is None, kind, name)
            await self._rows.check_free(locked, name)
            changed = ref._replace(name=name, name_key=name_key(locked.codec, name))
            did = "create_branch"
        elif kind == "rename_branch":
            return await self._rename_back(locked, ref, name, details["new_name"])
        elif kind == "protect_branch":
            return await self._protect_back(locked, ref, name, details["protected"])
        elif kind in ("create_tag", "delete_tag"):
            gone = kind == "create_tag"
            _check_as_left(ref.is_deleted != gone and ref.checkpoint_id is not None, kind, name)
            changed, did = ref._replace(is_deleted=gone), "delete_tag" if gone else "create_tag"
        else:
            raise InvalidInputError(f"an operation of the kind {kind!r} cannot be undone by this version")
        await locked.tx.batch([self._rows.update(locked.codec, locked.address, changed)])
        return {"kind": did, "name": name, "ref": ref.ref_no, "details": {}}

    async def _rename_back(self, locked: Locked, ref: Ref, name: str, new_name: str) -> Fields:
        _check_as_left(ref.is_named and ref.name == new_name, "rename_branch", new_name)
        await self._rows.check_free(locked, name)
        changed = ref._replace(name=name, name_key=name_key(locked.codec, name))
        await locked.tx.batch([self._rows.update(locked.codec, locked.address, changed)])
        return {"kind": "rename_branch", "name": new_name, "ref": ref.ref_no, "details": {"new_name": name}}

    async def _protect_back(self, locked: Locked, ref: Ref, name: str, protected: bool) -> Fields:
        changed = ref._replace(is_protected=not protected)
        statements = [self._rows.update(locked.codec, locked.address, changed)]
        if ref.ref_no == FIRST_LINE and not locked.main_line:
            statements.append(self._rows.set_main_line(locked.address, FIRST_LINE))
        await locked.tx.batch(statements)
        details = {"protected": not protected}
        return {"kind": "protect_branch", "name": name, "ref": ref.ref_no, "details": details}

    async def _move_back(self, locked: Locked, kind: str, name: str, details: Mapping[str, Any]) -> Fields:
        branch = None if name == MAIN else name
        before = await self.position(locked, branch)
        _check_as_left(before["line"] == details["after"]["line"], kind, name)
        after = await self.point(locked, name, before, details["before"])
        return {"kind": kind, "name": name, "ref": after["line"], "details": moved(before, after)}

    # --- names and positions

    async def position(self, locked: Locked, branch: str | None) -> Fields:
        """The line that a branch means, and its head."""
        view = await self.view(locked, branch)
        found = await self._views.home_of(locked.tx, self._on(locked, branch), view)
        return {"line": view.own.no, "head": None if found is None else decode_id(found[0])}

    async def _line_showing(self, locked: Locked, line_no: int, id_: bytes) -> int:
        """A line if it shows a checkpoint, else the one that the checkpoint is on."""
        address = self._on(locked, None)
        address.checkpoint_id = id_
        if await self._views.home_of(locked.tx, address, await self.view(locked, None, line_no)) is not None:
            return line_no
        elsewhere = await self._views.line_of(locked.tx, address, id_)
        return line_no if elsewhere is None else elsewhere

    async def view(self, locked: Locked, branch: str | None, line_no: int | None = None) -> View:
        return await self._names.view_in(
            locked.tx, locked.codec, locked.address, locked.epoch, locked.main_line, branch, line_no
        )

    def _on(self, locked: Locked, branch: str | None) -> Address:
        config = config_of(locked.address.given_thread_id, branch)
        return Address(config, self._context.tenant)

    async def point(
        self,
        locked: Locked,
        name: str,
        before: Mapping[str, Any],
        wanted: Mapping[str, Any],
        *,
        may_be_protected: bool = False,
    ) -> Fields:
        """Let a name mean a head: on its line if that has no name and went no further, else on a new line.

        Raises:
            ProtectedError: If the branch is protected.
            NotFoundError: If the head was pruned.
        """
        present = await self._rows.by_no(locked, before["line"])
        if present.is_protected and not may_be_protected:
            raise ProtectedError(f"branch {name!r} of thread {locked.address.thread_id!r} is protected")
        view = await self.view(locked, None, wanted["line"])
        latest = await self._views.home_of(locked.tx, self._on(locked, None), view)
        is_latest = latest is not None and decode_id(latest[0]) == wanted["head"]
        line = await self._rows.by_no(locked, wanted["line"])
        # Two names for one line would move together.
        is_nameless = line.name_key is None and line.ref_no != (locked.main_line or FIRST_LINE)
        if wanted["head"] is not None and not (is_latest and is_nameless):
            line = await self.new_line(locked, name, view, wanted["head"], secrets.randbits(62) | 1)
        await self._name(locked, name, present, line)
        return {"line": line.ref_no, "head": wanted["head"]}

    async def new_line(
        self, locked: Locked, name: str, view: View, head: str, ref_no: int, merged: Node | None = None
    ) -> Ref:
        """A line that starts at a checkpoint which a view shows."""
        address = self._on(locked, None)
        address.checkpoint_id = encode_id(head)
        found = await self._views.home_of(locked.tx, address, view)
        if found is None:
            raise NotFoundError(f"the checkpoint {head!r} is not there any more: it was pruned")
        start = branch_start(view, *found)
        params = {
            "thread": locked.address.thread,
            "root_key": ROOT_NS_KEY,
            "now_id": uuid6().bytes,
            **start._asdict(),
        }
        facts = await locked.tx.fetch_one(self._rows.queries["start_of_branch"], params)
        if facts is None:
            raise NotFoundError(f"the checkpoint {head!r} is not there any more: it was pruned")
        id_, cut, is_passed, base_writes = facts
        ref = FIRST._replace(
            ref_no=ref_no,
            merge_line=None if merged is None else merged.line,
            merge_id=None if merged is None else merged.id,
            base_line=start.base_line,
            home_line=start.home_line,
            checkpoint_id=id_,
            cut_id=cut,
            is_passed=is_passed,
            base_writes=base_writes,
            name=name,
        )
        await locked.tx.batch([self._rows.insert(locked.codec, locked.address, ref)])
        return ref

    async def _name(self, locked: Locked, name: str, present: Ref, line: Ref) -> None:
        """Take the name from one line and give it to another."""
        if name == MAIN:
            # Never NULL again: runs that are under way on the line it meant must be placed.
            statements = [self._rows.set_main_line(locked.address, line.ref_no)]
            if present.is_protected:
                rows = [present._replace(is_protected=False), line._replace(is_protected=True)]
                statements += [self._rows.update(locked.codec, locked.address, ref) for ref in rows]
            await locked.tx.batch(statements)
            return
        codec, address = locked.codec, locked.address
        key = name_key(codec, name)
        named = line._replace(name=name, name_key=key, is_protected=present.is_protected)
        changes = [present._replace(name_key=None, is_protected=False), named]
        await locked.tx.batch([self._rows.update(codec, address, ref) for ref in changes])

    async def record(
        self, locked: Locked, kind: str, name: str, said: Said, details: Mapping[str, Any]
    ) -> uuid.UUID:
        statement, id_ = self._rows.unconditional_operation(
            locked.codec, locked.address, kind, said, details, name
        )
        await locked.tx.batch([statement])
        return id_


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> Fields:
    return {"before": dict(before), "after": dict(after)}


def _check_as_left(is_as_left: bool, kind: str, name: str) -> None:
    """Raise ConflictError if something was done since to what an operation changed."""
    if not is_as_left:
        raise ConflictError(
            f"{kind} of {name!r} cannot be undone: something was done to it since, which log() shows; undo "
            "that first",
            sqlstate=None,
        )


def _check_built(values: Mapping[str, Any]) -> None:
    """Raise InvalidInputError if a value is of a class that this process cannot build."""
    unbuilt = sorted(name for name, value in values.items() if isinstance(value, Unbuilt))
    if unbuilt:
        raise InvalidInputError(
            f"the channels {', '.join(unbuilt)} have values of classes that are not built here: import "
            "their modules, and allow them, first"
        )
