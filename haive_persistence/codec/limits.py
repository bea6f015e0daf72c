"""Limits of what one read may take."""

from __future__ import annotations

from haive_persistence.errors import DecodeError

#: What one read may unpack to unless it is set otherwise, in bytes.
MAX_READ_BYTES = 1 << 30


class Budget:
    """Bytes that a read may still take; asked before memory is."""

    __slots__ = ("_left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = self._left = limit

    def spend(self, size: int) -> None:
        """Take `size` bytes. Raises DecodeError if so many are not left."""
        if not 0 <= size <= self._left:
            raise DecodeError(
                f"a read would take more than {self.limit:,} bytes: "
                "if the data is not damaged, raise CheckpointConfig.max_read_bytes"
            )
        self._left -= size
