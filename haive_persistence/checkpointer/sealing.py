"""Payloads in and out of rows: the codec with each row's identity bound to its bytes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from haive_persistence.checkpointer.ids import run_key
from haive_persistence.codec import Codec, blind_index, context


class BoundCodec:
    """A `Codec` for one tenant; sealed payloads open only in the row they were written to.

    `key`: the number of the data key that seals, and its wrapped form, as stored.
    """

    def __init__(
        self, codec: Codec, tenant: str, key: tuple[int, bytes] | None = None, index_key: bytes | None = None
    ) -> None:
        self.codec = codec
        self.sealed = codec.sealer is not None
        self.key = key
        self._tenant = tenant
        self._index_key = index_key

    def run_key(self, run_id: str) -> int:
        """The key by which a run's checkpoints are found; it tells nothing about the id of a sealed run."""
        if self._index_key is None:
            return run_key(run_id)
        return int.from_bytes(blind_index(self._index_key, "run_id", run_id)[:8], "big", signed=True)

    def _aad(self, table: str, thread: uuid.UUID, *identity: bytes | int) -> bytes:
        if not self.sealed:
            return b""
        parts = (_int(part) if isinstance(part, int) else part for part in identity)
        return context(self._tenant, table, thread.bytes, *parts)

    def seal_piece(self, thread: uuid.UUID, no: int, data: bytes) -> bytes:
        return self.codec.pack(data, self._aad("piece", thread, no))

    def open_piece(self, thread: uuid.UUID, no: int, stored: bytes) -> bytes:
        return self.codec.unpack(stored, self._aad("piece", thread, no))

    def open_pieces(self, thread: uuid.UUID, rows: Sequence[tuple[Any, ...]]) -> dict[int, bytes]:
        """Pieces by their number: `open_piece` for each `(no, payload)`."""
        if not rows:
            return {}
        numbers, stored = zip(*rows, strict=True)
        aads = (self._aad("piece", thread, no) for no in numbers) if self.sealed else repeat(b"")
        return dict(zip(numbers, self.codec.unpack_all(stored, aads), strict=True))

    def seal_head(self, thread: uuid.UUID, ns_key: int, checkpoint_id: bytes, data: bytes) -> bytes:
        return self.codec.pack(data, self._aad("checkpoint", thread, ns_key, checkpoint_id))

    def open_head(self, thread: uuid.UUID, ns_key: int, checkpoint_id: bytes, stored: bytes) -> bytes:
        return self.codec.unpack(stored, self._aad("checkpoint", thread, ns_key, checkpoint_id))

    def seal_write(self, thread: uuid.UUID, ns_key: int, checkpoint_id: bytes, no: int, data: bytes) -> bytes:
        return self.codec.pack(data, self._aad("pending_write", thread, ns_key, checkpoint_id, no))

    def open_write(
        self, thread: uuid.UUID, ns_key: int, checkpoint_id: bytes, no: int, stored: bytes
    ) -> bytes:
        return self.codec.unpack(stored, self._aad("pending_write", thread, ns_key, checkpoint_id, no))


def _int(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)
