"""Finding the checkpoint that a caller names: by a config, a record, an id, or a name with its thread."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import (
    ROOT_NS_KEY,
    Address,
    encode_id,
    line_name,
    listing_key,
    shown,
    thread_id_text,
)
from haive_persistence.checkpointer.versions.names import MAIN, Names, name_key
from haive_persistence.checkpointer.versions.records import config_of
from haive_persistence.checkpointer.versions.ref_records import open_ref
from haive_persistence.db.protocol import Db
from haive_persistence.errors import InvalidInputError, NotFoundError


class Locator:
    """Finds one tenant's checkpoints."""

    def __init__(self, context: TenantContext, names: Names) -> None:
        self._context = context
        self._names = names

    async def locate(self, db: Db, named: object, thread_id: object = None) -> Address:
        """The address of the checkpoint that is named; without an id for the head of a branch.

        Args:
            db: The database.
            named: A config, a record with one (`CheckpointTuple`, `StateSnapshot`, `Branch`, `Tag`), a
                checkpoint's id, or with `thread_id` the name of a branch or tag.
            thread_id: The thread, for a name or an id.

        Raises:
            NotFoundError: If there is none.
            InvalidInputError: If it is named in another way, or several threads have the id.
        """
        config = named if isinstance(named, Mapping) else getattr(named, "config", None)
        if isinstance(config, Mapping):
            return Address(config, self._context.tenant)
        if not isinstance(named, str):
            raise InvalidInputError(
                "name a checkpoint by its config, its id, a record that has a config, or the name of a "
                f"branch or tag with its thread_id: not by {shown(named)}"
            )
        if thread_id is None:
            return await self._by_id(db, named)
        return await self._in_thread(db, named, thread_id)

    async def _by_id(self, db: Db, checkpoint_id: str) -> Address:
        id_ = encode_id(checkpoint_id)
        params = {"id": id_, "listing_key": listing_key(self._context.tenant, id_), "root_key": ROOT_NS_KEY}
        rows = await db.fetch_all(self._names.queries["checkpoints_by_id"], params, idempotent=True)
        if not rows:
            raise NotFoundError(
                f"there is no checkpoint {shown(checkpoint_id)} in this tenant; a branch or tag is found "
                "with its thread_id="
            )
        if len({row[0] for row in rows}) > 1:
            threads = ", ".join(sorted(repr(row[1]) for row in rows))
            raise InvalidInputError(
                f"the checkpoint {checkpoint_id!r} is in several threads ({threads}): give thread_id="
            )
        thread, text, line_no, main_line = rows[0]
        return await self._on_line(db, thread, text, line_no, main_line, id_)

    async def _on_line(
        self, db: Db, thread: uuid.UUID, thread_id: Any, line_no: int, main_line: int | None, id_: bytes
    ) -> Address:
        """A checkpoint with the branch that names its line."""
        branch: str | None = None
        if line_no != (main_line or 0):
            address = Address(config_of(thread_id, line_name(line_no)), self._context.tenant)
            view = await self._names.view(db, address)
            branch = (view.own.name if view is not None else None) or line_name(line_no)
        address = Address(config_of(thread_id, branch), self._context.tenant)
        address.checkpoint_id = id_
        return address

    async def _in_thread(self, db: Db, named: str, thread_id: object) -> Address:
        text = thread_id_text(thread_id)
        address = Address(config_of(thread_id, None), self._context.tenant)
        if named == MAIN:
            return address
        if named.startswith("@"):
            return Address(config_of(thread_id, named), self._context.tenant)
        codec = await self._context.codec(db)
        params: dict[str, Any] = {"thread": address.thread, "name_key": name_key(codec, named)}
        row = await db.fetch_one(self._names.queries["ref_by_name"], params, idempotent=True)
        if row is not None:
            ref = open_ref(codec, address.thread, row)
            if ref.name == named and not ref.is_deleted:
                if not ref.is_tag:
                    return Address(config_of(thread_id, named), self._context.tenant)
                now = await db.fetch_one(self._names.queries["thread_now"], params, idempotent=True)
                main_line = None if now is None else now[1]
                line_no = ref.home_line or 0
                return await self._on_line(
                    db, address.thread, thread_id, line_no, main_line, ref.checkpoint_id or b""
                )
        id_ = encode_id(named)
        params |= {"id": id_, "ns_key": ROOT_NS_KEY, "listing_key": listing_key(self._context.tenant, id_)}
        found = await db.fetch_one(self._names.queries["line_of_checkpoint"], params, idempotent=True)
        if found is None:
            raise NotFoundError(f"thread {text!r} has no branch, tag or checkpoint {shown(named)}")
        now = await db.fetch_one(self._names.queries["thread_now"], params, idempotent=True)
        return await self._on_line(
            db, address.thread, thread_id, found[0], None if now is None else now[1], id_
        )
