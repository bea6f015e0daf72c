"""Copying a whole thread to another one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import thread_id_text
from haive_persistence.checkpointer.storage.piece_index import new_epoch
from haive_persistence.checkpointer.versions.names import Names
from haive_persistence.checkpointer.versions.ref_records import open_operation, open_ref, pack_operation
from haive_persistence.db.protocol import Db, Executor, Statement
from haive_persistence.errors import InvalidInputError, NotFoundError
from haive_persistence.keys import Sealing

COPY_ROWS = 1000


class Copying:
    """Copies one tenant's threads."""

    def __init__(self, context: TenantContext, names: Names) -> None:
        self._context = context
        self._names = names
        self._queries = context.queries

    async def copy_thread(self, db: Db, source: object, target: object) -> None:
        """Copy everything of one thread. Sealed payloads are bound to their rows: they are sealed again."""
        params: dict[str, Any] = {
            "thread": self._context.thread_key(source),
            "target": self._context.thread_key(target),
            "tenant": self._context.tenant,
            "epoch": new_epoch(),
            "thread_id": thread_id_text(target),
        }
        if params["thread"] == params["target"]:
            raise InvalidInputError("source and target are the same thread")

        async def copy() -> None:
            await self._context.with_all_keys(db, lambda: self._copy(db, params, source))

        await self._context.retrying(f"thread {source!r}", copy)
        self._context.cache.drop(params["target"].bytes)

    async def _copy(self, db: Db, params: dict[str, Any], source: object) -> None:
        sealed = (await self._context.codec_to_write(db)).sealed
        codec = await self._context.latest_codec(db) if sealed else None
        async with db.transaction() as tx:
            if codec is None:
                await self._context.keys.data_keys.check_plaintext(tx, self._context.tenant)
            is_new = await self._lock(tx, params, source)
            if codec is not None:
                await self._copy_sealed(tx, codec, params)
                await self._copy_sealed_refs(tx, codec, params)
            else:
                tables = ("copy_checkpoints", "copy_writes", "copy_pieces")
                await tx.batch([Statement(self._queries[n], params) for n in tables])
                names = self._names.queries
                await tx.batch([Statement(names[n], params) for n in ("copy_refs", "copy_operations")])
            if is_new:  # the head of a thread that is there stays
                await tx.execute(self._names.queries["copy_main_line"], params)

    async def _lock(self, tx: Executor, params: dict[str, Any], source: object) -> bool:
        """Lock both threads' rows, in the order of their keys: two copies then never wait for each other.

        Returns True if there was no target.
        """
        locks = [("lock_source", params["thread"]), ("lock_target", params["target"])]
        locks.sort(key=itemgetter(1))
        answers = await tx.batch([Statement(self._queries[name], params) for name, _ in locks])
        locked = {name: rows for (name, _), rows in zip(locks, answers, strict=True)}
        if not locked["lock_source"]:
            raise NotFoundError(f"there is no thread {source!r} to copy")
        return bool(locked["lock_target"][0][0])

    async def _copy_sealed(self, tx: Executor, codec: Sealing, params: dict[str, Any]) -> None:
        source, target = params["thread"], params["target"]
        for name, select, reseal in _SEALED_TABLES:
            rows = await tx.fetch_all(self._queries[select], params)
            for at in range(0, len(rows), COPY_ROWS):
                part = [reseal(codec, source, target, row) for row in rows[at : at + COPY_ROWS]]
                await tx.batch([Statement(self._queries[name], params | row) for row in part])

    async def _copy_sealed_refs(self, tx: Executor, codec: Sealing, params: dict[str, Any]) -> None:
        source, target, queries = params["thread"], params["target"], self._names.queries
        there = await tx.fetch_all(queries["refs_of_thread"], {"thread": target})
        used = {open_ref(codec, target, row).name_key for row in there}
        refs = [open_ref(codec, source, row) for row in await tx.fetch_all(queries["refs_of_thread"], params)]
        statements = []
        for ref in refs:
            copied = ref._replace(name_key=None) if ref.name_key in used else ref
            row = {"thread": target, **copied.params(codec, target)}
            statements.append(Statement(queries["insert_ref"], row))
        for id_, at, payload in await tx.fetch_all(queries["operations_of_thread"], params):
            fields = open_operation(codec, source, id_, payload)
            row = {
                "thread": target,
                "operation_id": id_,
                "at": at,
                "payload": pack_operation(codec, target, id_, fields),
            }
            statements.append(Statement(queries["insert_operation"], row))
        if statements:
            await tx.batch(statements)


def _reseal_piece(codec: Sealing, source: uuid.UUID, target: uuid.UUID, row: Sequence[Any]) -> dict[str, Any]:
    no, payload = row
    data = codec.open("piece", (source, no), payload)
    return {"piece_no": no, "payload": codec.seal("piece", (target, no), data)}


def _reseal_checkpoint(
    codec: Sealing, source: uuid.UUID, target: uuid.UUID, row: Sequence[Any]
) -> dict[str, Any]:
    ns_key, line, parent_ns, run, listing_key, signature_1, signature_2, id_, parent, sequence_nos, body = row
    data = codec.open("checkpoint", (source, ns_key, id_), body)
    return {
        "ns_key": ns_key,
        "line_no": line,
        "parent_ns_key": parent_ns,
        "run_key": run,
        "listing_key": listing_key,
        "signature_1": signature_1,
        "signature_2": signature_2,
        "id": id_,
        "parent": parent,
        "sequence_nos": sequence_nos,
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


_SEALED_TABLES = (
    ("insert_checkpoints", "whole_checkpoints", _reseal_checkpoint),
    ("insert_writes", "all_writes", _reseal_write),
    ("insert_pieces", "all_pieces", _reseal_piece),
)
