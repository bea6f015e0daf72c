"""Copying a whole thread to another one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import thread_id_text
from haive_persistence.checkpointer.storage.piece_index import new_epoch
from haive_persistence.db.protocol import Db, Statement
from haive_persistence.errors import InvalidInputError
from haive_persistence.keys import Sealing

COPY_ROWS = 1000


class Copying:
    """Copies one tenant's threads."""

    def __init__(self, context: TenantContext) -> None:
        self._context = context
        self._queries = context.queries

    async def copy_thread(self, db: Db, source: object, target: object) -> None:
        """Everything of one thread, to another. Sealed payloads are bound to their rows: sealed again."""
        target_key = self._context.thread_key(target)
        params: dict[str, Any] = {
            "thread": self._context.thread_key(source),
            "target": target_key,
            "tenant": self._context.tenant,
            "epoch": new_epoch(),
            "thread_id": thread_id_text(target),
        }
        if params["thread"] == target_key:
            raise InvalidInputError("source and target are the same thread")
        if (await self._context.codec(db)).sealed:
            await self._context.with_all_keys(db, lambda: self._copy_sealed(db, params))
        else:
            names = ("copy_thread_row", "copy_pieces", "copy_checkpoints", "copy_writes")
            async with db.transaction(isolation="repeatable read") as tx:
                await self._context.keys.data_keys.check_plaintext(tx, self._context.tenant)
                if await tx.fetch_one(self._queries["epoch"], params) is not None:
                    await tx.batch([Statement(self._queries[n], params) for n in names])
        self._context.cache.drop(target_key.bytes)

    async def _copy_sealed(self, db: Db, params: dict[str, Any]) -> None:
        codec = await self._context.latest_codec(db)
        source, target = params["thread"], params["target"]
        async with db.transaction(isolation="repeatable read") as tx:
            if await tx.fetch_one(self._queries["epoch"], params) is None:
                return
            await tx.execute(self._queries["copy_thread_row"], params)
            for name, rows in (
                ("insert_pieces", await tx.fetch_all(self._queries["all_pieces"], params)),
                ("insert_checkpoints", await tx.fetch_all(self._queries["whole_checkpoints"], params)),
                ("insert_writes", await tx.fetch_all(self._queries["all_writes"], params)),
            ):
                reseal = _RESEAL[name]
                for at in range(0, len(rows), COPY_ROWS):
                    part = [reseal(codec, source, target, row) for row in rows[at : at + COPY_ROWS]]
                    await tx.batch([Statement(self._queries[name], params | row) for row in part])


def _reseal_piece(codec: Sealing, source: uuid.UUID, target: uuid.UUID, row: Sequence[Any]) -> dict[str, Any]:
    no, payload = row
    data = codec.open("piece", (source, no), payload)
    return {"piece_no": no, "payload": codec.seal("piece", (target, no), data)}


def _reseal_head(codec: Sealing, source: uuid.UUID, target: uuid.UUID, row: Sequence[Any]) -> dict[str, Any]:
    ns_key, run, id_, parent, sequence_nos, labels, head = row
    data = codec.open("checkpoint", (source, ns_key, id_), head)
    return {
        "ns_key": ns_key,
        "run_key": run,
        "id": id_,
        "parent": parent,
        "sequence_nos": sequence_nos,
        "labels": labels,
        "body": codec.seal("checkpoint", (target, ns_key, id_), data),
    }


def _reseal_write(codec: Sealing, source: uuid.UUID, target: uuid.UUID, row: Sequence[Any]) -> dict[str, Any]:
    ns_key, id_, no, sequence_nos, payload = row
    data = codec.open("pending_write", (source, ns_key, id_, no), payload)
    return {
        "ns_key": ns_key,
        "id": id_,
        "write_no": no,
        "sequence_nos": sequence_nos,
        "payload": codec.seal("pending_write", (target, ns_key, id_, no), data),
    }


_RESEAL = {
    "insert_pieces": _reseal_piece,
    "insert_checkpoints": _reseal_head,
    "insert_writes": _reseal_write,
}
