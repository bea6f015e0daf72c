"""Manifests and pieces to values that share nothing mutable. Pure: no database."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence.checkpointer.ids import unpack_uuid, unpack_uuids
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.message_cache import (
    MESSAGE_CLASSES,
    CachedMessage,
    Run,
    are_immutable,
    message_key,
)
from haive_persistence.checkpointer.storage.piece_index import ThreadLog, key_of
from haive_persistence.codec import Codec, SafeSerializer, unbuilt_count
from haive_persistence.errors import DecodeError

_CONTAINERS = frozenset({list, dict})

Ids = Mapping[int, tuple[str, int]]  # message piece -> the id it is given, and the piece that gives it
_NO_IDS: Ids = {}


def _given(ids: Ids, numbers: Sequence[int]) -> list[str | None] | None:
    return [given and given[0] for given in map(ids.get, numbers)] if ids else None


def _size(values: Iterable[Any]) -> int:
    return sum(map(sys.getsizeof, values))


def piece_size(piece: Any) -> int:
    """About how many bytes the value of a piece takes, stored or decoded."""
    if type(piece) is bytes:
        return len(piece)
    if type(piece) is CachedMessage:
        return _size(piece.fields.values())
    return _size(piece.values() if type(piece) is dict else piece if type(piece) is tuple else ())


class IdPiece:
    """An id piece, unpacked once: which message pieces it gives which ids."""

    __slots__ = ("ids",)

    def __init__(self, no: int, data: bytes) -> None:
        flat = mf.unpack(data)
        self.ids = {no - flat[i]: (unpack_uuid(flat[i + 1]), no) for i in range(0, len(flat), 2)}


class Decoder:
    """Turns manifests into values that share nothing mutable with anything else."""

    def __init__(self, codec: Codec, log: ThreadLog) -> None:
        self._load = codec.load
        self._dump = codec.dump
        self._is_safe = isinstance(codec.serde, SafeSerializer)
        self._log = log
        self._pieces = log.pieces
        self._last_ids: tuple[Sequence[Any], int, Ids] | None = None
        self._runs: dict[int, Run] = {}  # by the number of their first piece

    def decode(self, manifest: mf.Manifest, base: int) -> Any:
        if type(manifest) is bytes:
            return self._load(manifest)
        if type(manifest) is not list or not manifest:
            return manifest.copy() if type(manifest) in _CONTAINERS else manifest
        kind = manifest[0]
        if kind == mf.LEAF:
            return self._leaf(base + manifest[1])
        if kind == mf.LIST:
            return self._list(manifest, base)
        if kind == mf.DICT:
            return self._dict(manifest, base)
        if kind == mf.PACKED:
            return self._load(unpack_uuids(manifest[1:]))
        if kind == mf.SNAPSHOT:
            return _DeltaSnapshot(self.decode(manifest[1], base))
        if kind == mf.SEND:
            return self._send(manifest[1], self.decode(manifest[2], base))
        raise DecodeError(f"unknown kind of manifest {kind!r}: written by a newer version of this package")

    def _send(self, node: str, arg: Any) -> Any:
        send = getattr(sys.modules.get("langgraph.types"), "Send", None)
        return (node, arg) if send is None else send(node, arg)

    def _leaf(self, no: int) -> Any:
        data = self._pieces[no]
        self._log.add_location(key_of("value", data), no)
        return self._load(data)

    def _list(self, manifest: list[Any], base: int) -> list[Any]:
        out: list[Any] = []
        (items, start), *given = mf.items_of(manifest, base)
        ids = self._ids(*given[0]) if given else _NO_IDS
        for part in mf.decode_items(items, start, self._log.sequences):
            if isinstance(part, list):
                out.append(self.decode(part[1], base))
            else:
                out += self._slices(range(part[0], part[0] + part[1]), ids)
        return out

    def _ids(self, items: Sequence[Any], base: int) -> Ids:
        """Message piece -> (id, id piece). One checkpoint's are often those of the next."""
        if self._last_ids is not None and self._last_ids[:2] == (items, base):
            return self._last_ids[2]
        out: dict[int, tuple[str, int]] = {}
        pieces = self._pieces
        for part in mf.decode_items(items, base, self._log.sequences):
            for no in range(part[0], part[0] + part[1]):
                piece = pieces[no]
                if type(piece) is not IdPiece:
                    piece = pieces[no] = IdPiece(no, piece)
                    self._log.record_id_piece(piece.ids, no)
                out.update(piece.ids)
        self._last_ids = (items, base, out)
        return out

    def _slices(self, numbers: range, ids: Ids) -> list[Any]:
        """The elements of some pieces."""
        run = self._runs.get(numbers.start)
        if run is not None and run.length >= len(numbers):
            return run.copies(_given(ids, numbers), len(numbers))
        found = [self._pieces[no] for no in numbers]
        for at, piece in enumerate(found):
            if type(piece) is bytes:
                no = numbers[at]
                found[at] = self._elements(no, piece, ids.get(no))
        kinds = set(map(type, found))
        if CachedMessage not in kinds:
            return list(chain.from_iterable(found))
        if kinds == {CachedMessage}:
            run = self._runs[numbers.start] = Run(found)
            return run.copies(_given(ids, numbers))
        out: list[Any] = []
        at = 0
        for kind, part in groupby(found, type):
            some = list(part)
            if kind is CachedMessage:
                out += Run(some).copies(_given(ids, numbers[at : at + len(some)]))
            else:
                out += chain.from_iterable(some)
            at += len(some)
        return out

    def _elements(self, no: int, stored: bytes, given: tuple[str, int] | None) -> list[Any] | CachedMessage:
        """Return the elements of a piece found as bytes; of a message read again, its cached form."""
        before = unbuilt_count()
        elements: list[Any] = self._load(stored)
        built = unbuilt_count() == before
        message: Any = elements[0] if len(elements) == 1 else None
        if type(message) not in MESSAGE_CLASSES:
            if self._is_new(no):
                self._log.add_location(key_of("list", stored), no)
            elif self._may_keep(no, stored, elements, built) and are_immutable(elements):
                self._log.record_decoded(self._pieces, no, tuple(elements), _size(elements))
            return elements
        is_new = self._is_new(no)
        keep = not is_new and self._may_keep(no, stored, elements, built)
        original = CachedMessage.of(message) if keep else None
        if original is not None:
            self._log.record_decoded(self._pieces, no, original, 3 * len(stored) + 1000)
            return original
        if given is not None:
            message.__dict__["id"] = given[0]
        if is_new:  # so that it is known when it is put again
            self._register(no, message, stored, given)
        return elements

    def _register(self, no: int, message: BaseMessage, stored: bytes, given: tuple[str, int] | None) -> None:
        fields = message_key(message)
        if fields is None:
            self._log.add_location(key_of("list", stored), no)
        else:
            location = no if given is None else (no, given[1])
            self._log.add_location(key_of(type(message), fields), location)

    def _is_new(self, no: int) -> bool:
        """Whether a piece is decoded for the first time."""
        met = self._log.cacheable_by_piece
        if no in met:
            return False
        met[no] = True
        return True

    def _may_keep(self, no: int, stored: bytes, value: Any, built: bool) -> bool:
        """True if a piece may stay decoded: asked once.

        What was left unbuilt (not `built`) must not: its class may be imported later.
        """
        met = self._log.cacheable_by_piece
        if met[no]:
            met[no] = not self._is_safe or (built and self._dump(value) == stored)
        return met[no]

    def _dict(self, manifest: list[Any], base: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        log = self._log
        ((items, start),) = mf.items_of(manifest, base)
        for part in mf.decode_items(items, start, log.sequences):
            if isinstance(part, list):
                out[part[0]] = self.decode(part[1], base)
                continue
            for no in range(part[0], part[0] + part[1]):
                piece = self._pieces[no]
                out.update(self._entries(no, piece) if type(piece) is bytes else piece)
        return out

    def _entries(self, no: int, stored: bytes) -> dict[str, Any]:
        before = unbuilt_count()
        entries: dict[str, Any] = self._load(stored)
        built = unbuilt_count() == before
        if self._is_new(no):
            self._log.add_location(key_of("dict", stored), no)
        elif self._may_keep(no, stored, entries, built) and are_immutable(entries.values()):
            self._log.record_decoded(self._pieces, no, entries, _size(entries.values()))
        return entries
