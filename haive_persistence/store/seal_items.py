"""Sealing items that were written before their tenant had a key.

Items are sealed in the order of their keys, some hundred in a transaction that has them locked. A process
that is killed leaves those of its last transaction as they were. An item that was put again sealed meanwhile
stays as it was put; the older one is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from haive_persistence.db import Db, Executor, Row, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.documents.arrays import bytea_array, text_array
from haive_persistence.documents.items import ItemCodec, ItemId, SealedItemCodec
from haive_persistence.documents.namespaces import Scope
from haive_persistence.errors import ConflictError, PlaintextRefusedError
from haive_persistence.keys import SealProgress

_AT_ONCE = 500
_ATTEMPTS = 8

_CLEAR = ItemCodec()


async def seal_scope(
    db: Db,
    queries: Queries,
    codec: SealedItemCodec,
    scope: Scope,
    moment: int,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Seal the items of a range of namespaces. Returns how many were in plaintext.

    Raises PlaintextRefusedError for an item that was written after the moment.
    """
    after: ItemId = "", ""
    done = 0
    while True:
        params: dict[str, object] = {
            "tenant": db.tenant,
            "low": scope.low,
            "high": scope.high,
            "after_namespace": after[0],
            "after_key": after[1],
            "limit": _AT_ONCE,
        }
        rows = await _seal_some(db, queries, codec, moment, params)
        done += len(rows)
        if rows and progress is not None:
            progress(done)
        if len(rows) < _AT_ONCE:
            return done
        after = rows[-1][0], rows[-1][1]


async def _seal_some(
    db: Db, queries: Queries, codec: SealedItemCodec, moment: int, params: dict[str, object]
) -> Sequence[Row]:
    """Seal the next items, again when somebody puts one of them at the same time. Returns their rows."""
    for attempt in range(_ATTEMPTS):
        try:
            async with db.transaction() as tx:
                rows = await tx.fetch_all(queries["plaintext_items"], params)
                if rows:
                    await _check_trusted(tx, db.tenant, queries, moment, rows)
                    await _seal(tx, db.tenant, queries, codec, rows)
            return rows
        except ConflictError:
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _check_trusted(
    tx: Executor, tenant: str, queries: Queries, moment: int, rows: Sequence[Row]
) -> None:
    """Raise PlaintextRefusedError unless all of these rows, which are locked, are older than the key."""
    names = {
        "namespaces": text_array(namespace for namespace, *_ in rows),
        "keys": text_array(key for _, key, *_ in rows),
    }
    row = await tx.fetch_one(queries["items_are_trusted"], {"tenant": tenant, "moment": moment, **names})
    if row != (True,):
        raise PlaintextRefusedError(
            f"tenant {tenant!r} has items in plaintext that were written after its first key was made: "
            "something else wrote them; delete them from store_item, or restore a backup"
        )


async def _seal(
    tx: Executor, tenant: str, queries: Queries, codec: SealedItemCodec, rows: Sequence[Row]
) -> None:
    items: list[ItemId] = [(namespace, key) for namespace, key, *_ in rows]
    sealed = [codec.item_id(item) for item in items]
    encoded = [
        codec.encode(stored, _CLEAR.decode(item, columns))
        for item, stored, (_, _, *columns) in zip(items, sealed, rows, strict=True)
    ]
    values = {
        "payloads": bytea_array(columns.payload for columns in encoded),
        "values": f"[{','.join([columns.value for columns in encoded])}]",
    }
    renamed = list(zip(items, sealed, strict=True))
    made = await tx.fetch_all(queries["seal_items"], {**_names(tenant, renamed), **values})
    new = {(namespace, key) for namespace, key in made}
    moved = _names(tenant, [pair for pair in renamed if pair[1] in new])
    await tx.batch(
        [
            Statement(queries["rename_vectors"], moved),
            Statement(queries["delete_items"], _names(tenant, renamed)),
        ]
    )


def _names(tenant: str, renamed: Sequence[tuple[ItemId, ItemId]]) -> dict[str, object]:
    return {
        "tenant": tenant,
        "namespaces": text_array(item[0] for item, _ in renamed),
        "keys": text_array(item[1] for item, _ in renamed),
        "sealed_namespaces": text_array(sealed[0] for _, sealed in renamed),
        "sealed_keys": text_array(sealed[1] for _, sealed in renamed),
    }


def reporting(progress: Callable[[SealProgress], None], total: int) -> Callable[[int], None]:
    """The progress of one range as that of all."""
    return lambda done: progress(SealProgress(done, max(done, total)))
