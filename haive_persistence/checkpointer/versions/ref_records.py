"""The rows of `ref` and `operation`: what is in their payloads, and in which columns. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import ormsgpack

from haive_persistence.checkpointer.storage.manifest import pack, unpack
from haive_persistence.checkpointer.storage.row_format import check_format
from haive_persistence.checkpointer.versions.lines import Line
from haive_persistence.codec.seal import is_sealed
from haive_persistence.errors import InvalidInputError, TamperedError
from haive_persistence.keys import Sealing

FORMAT = 1


class Ref(NamedTuple):
    """A row of `ref`: a line with or without a name, or a tag."""

    ref_no: int
    name_key: int | None
    base_line: int | None
    home_line: int | None
    checkpoint_id: bytes | None
    cut_id: bytes | None
    base_writes: list[int] | None
    is_tag: bool
    is_passed: bool
    is_protected: bool
    is_deleted: bool
    merge_line: int | None
    merge_id: bytes | None
    created_at: datetime | None
    name: str
    metadata: Mapping[str, Any]

    @property
    def is_named(self) -> bool:
        return self.name_key is not None and not self.is_deleted

    def line(self) -> Line:
        return Line(
            self.ref_no,
            self.name if self.name_key is not None else None,
            self.base_line,
            self.home_line or 0,
            self.checkpoint_id or b"",
            self.cut_id or b"",
            frozenset(self.base_writes or ()),
            self.is_passed,
            self.is_protected,
        )

    def params(self, codec: Sealing, thread: uuid.UUID) -> dict[str, Any]:
        """The row's columns."""
        columns = self._asdict()
        for name in ("name", "metadata"):
            del columns[name]
        return {**columns, "payload": self.payload(codec, thread)}

    def payload(self, codec: Sealing, thread: uuid.UUID) -> bytes:
        fields: list[Any] = [FORMAT, self.name, packed_metadata(self.metadata)]
        if codec.sealed:
            fields += self._meaning()
        return codec.seal("ref", (thread, self.ref_no), pack(fields))

    def _meaning(self) -> list[Any]:
        """The columns that a sealed row repeats in its payload, where they cannot be changed."""
        return list(self[1:13])


def packed_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Raises InvalidInputError unless the metadata is a dict that JSON can say."""
    try:
        return ormsgpack.packb(dict(metadata))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the metadata cannot be stored ({error}): use a dict of text, numbers, lists and dicts"
        ) from error


def open_ref(codec: Sealing, thread: uuid.UUID, row: tuple[Any, ...]) -> Ref:
    """A row of `refs_of_thread`. Raises TamperedError if a sealed row was changed."""
    *columns, payload = row
    fields = unpack(codec.open("ref", (thread, columns[0]), payload))
    check_format(fields, "branch or tag")
    ref = Ref._make([*columns, fields[1], ormsgpack.unpackb(fields[2])])
    if codec.sealed and is_sealed(payload) and fields[3:] != ref._meaning():
        raise TamperedError(f"the row of the branch or tag {ref.name!r} was changed")
    return ref


def pack_operation(
    codec: Sealing, thread: uuid.UUID, operation: uuid.UUID, fields: Mapping[str, Any]
) -> bytes:
    return codec.seal("operation", (thread, operation), pack([FORMAT, dict(fields)]))


def open_operation(codec: Sealing, thread: uuid.UUID, operation: uuid.UUID, payload: bytes) -> dict[str, Any]:
    fields = unpack(codec.open("operation", (thread, operation), payload))
    check_format(fields, "operation")
    found: dict[str, Any] = fields[1]
    return found
