"""Manifests and pieces to values that share nothing mutable. Pure: no database."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence.checkpointer.ids import unpack_uuid, unpack_uuids
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.copies import CachedPiece, Run
from haive_persistence.checkpointer.storage.messages import MESSAGE_CLASSES, message_key, message_keys
from haive_persistence.checkpointer.storage.piece_index import PieceRef, ThreadLog, key_of
from haive_persistence.codec import Codec, lookup, unbuilt_count
from haive_persistence.errors import DecodeError

LONG_RANGE = 16  # pieces
MAX_RUNS = 256  # per thread
FEW = 4  # pieces, or manifests, that are decoded one by one
_CONTAINERS = frozenset({list, dict})
_TEXT = frozenset({str})
_STORED = {bytes}

Ids = Mapping[int, tuple[str, int]]  # message piece -> the id it is given, and the piece that gives it
_NO_IDS: Ids = {}


_Parts = tuple[list[Any], list[Any]]  # keys (of a dict's entries; else none) and values


def _split(kind: str, loaded: Any) -> _Parts:
    if kind == "dict":
        return list(loaded), list(loaded.values())
    return [], loaded if kind == "list" else [loaded]


def _range_of(manifest: mf.Manifest, base: int) -> tuple[int, int] | None:
    """The pieces of a list that is one range of them: (start, length)."""
    if type(manifest) is not list or len(manifest) != 2 or manifest[0] != mf.LIST:
        return None
    ranges = list(mf.items_of(manifest, base))
    (items, start) = ranges[0]
    if len(items) != 2 or type(items[0]) is not int or not items[1]:
        return None
    return start + items[0], items[1]


def piece_size(piece: Any) -> int:
    """About how many bytes the value of a piece takes, stored or decoded."""
    if type(piece) is bytes:
        return len(piece)
    return piece.size if type(piece) is CachedPiece else 0


class IdPiece:
    """An id piece, unpacked once: which message pieces it gives which ids."""

    __slots__ = ("ids",)

    def __init__(self, no: int, data: bytes) -> None:
        self.ids = {piece: (unpack_uuid(id_), no) for piece, id_ in mf.decode_ids(no, data)}


class Decoder:
    """Turns manifests into values that share nothing mutable with anything else."""

    def __init__(self, codec: Codec, log: ThreadLog) -> None:
        self._load = codec.load
        self._log = log
        self.pieces, self._runs = log.cached()
        self._last_ids: dict[int, tuple[Sequence[Any], int, Ids]] = {}  # of single ones, of joined ones
        self._load_all = codec.load_all
        self._load_messages = codec.load_messages
        self._current: dict[type, bool] = {}

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

    def decode_all(self, manifests: Sequence[tuple[mf.Manifest, int]]) -> list[Any]:
        """Decode many manifests, each with its base. Short lists of cached pieces are copied together."""
        if len(manifests) < FEW:
            return [self.decode(m, base) for m, base in manifests]
        short = {at: no for at, (m, base) in enumerate(manifests) if (no := _range_of(m, base)) is not None}
        numbers = [no for start, count in short.values() for no in range(start, start + count)]
        pieces = [self.pieces[no] for no in numbers]
        if len(short) < 2 or not all(type(p) is CachedPiece and self.are_current(p.classes) for p in pieces):
            return [self.decode(m, base) for m, base in manifests]
        copied = iter(self._copies(numbers, pieces, _NO_IDS)[1])
        sizes = iter([len(piece.values) for piece in pieces])
        return [
            list(islice(copied, sum(islice(sizes, short[at][1])))) if at in short else self.decode(*manifest)
            for at, manifest in enumerate(manifests)
        ]

    def _send(self, node: str, arg: Any) -> Any:
        send = getattr(sys.modules.get("langgraph.types"), "Send", None)
        return (node, arg) if send is None else send(node, arg)

    def _leaf(self, no: int) -> Any:
        piece = self.pieces[no]
        if type(piece) is CachedPiece and self.are_current(piece.classes):
            return piece.copy()
        return self._parts([no], _NO_IDS, "value")[1][0]

    def _list(self, manifest: list[Any], base: int) -> list[Any]:
        out: list[Any] = []
        (items, start), *given = mf.items_of(manifest, base)
        ids: Ids = _NO_IDS
        parts = list(self._gathered(items, start))
        for at, (id_items, first) in enumerate(given):
            if id_items and type(id_items[-1]) is list:
                ids = {parts[-1][-1]: (unpack_uuid(id_items[-1][0]), mf.INLINE)}
                id_items = id_items[:-1]
            ids = {**ids, **self._ids(at, id_items, first)}
        for part in parts:
            if type(part[0]) is int:
                out += self._parts(part, ids, "list")[1]
            else:
                out.append(self.decode(part[1], base))
        return out

    def _ids(self, at: int, items: Sequence[Any], base: int) -> Ids:
        """Message piece -> (id, id piece). One checkpoint's are often those of the next."""
        last = self._last_ids.get(at)
        if last is not None and last[:2] == (items, base):
            return last[2]
        out: dict[int, tuple[str, int]] = {}
        pieces = self.pieces
        for part in mf.decode_items(items, base, self._log.sequences):
            for no in range(part[0], part[0] + part[1]):
                piece = pieces[no]
                if type(piece) is not IdPiece:
                    piece = pieces[no] = IdPiece(no, piece)
                    self._log.record_ids(piece.ids)
                out.update(piece.ids)
        self._last_ids[at] = (items, base, out)
        return out

    def _gathered(self, items: Sequence[Any], start: int) -> Iterator[list[Any]]:
        """Numbers of pieces to be read together, and elements with their own manifest, of a list or dict.

        A long range is by itself: in a list that is edited here and there, it stays while others change.
        """
        numbers: list[int] = []
        for part in mf.decode_items(items, start, self._log.sequences):
            if isinstance(part, tuple) and part[1] < LONG_RANGE:
                numbers += range(part[0], part[0] + part[1])
                continue
            if numbers:
                yield numbers
                numbers = []
            yield list(range(part[0], part[0] + part[1])) if isinstance(part, tuple) else part
        if numbers:
            yield numbers

    def _parts(self, numbers: list[int], ids: Ids, kind: str) -> _Parts:
        """The elements, entries or value of some pieces."""
        keys: list[Any] = []
        values: list[Any] = []
        run = self._runs.get(numbers[0])
        known = run.shared_with(numbers) if run is not None and self.are_current(run.classes) else 0
        if run is not None and known and (known == len(numbers) or known < run.pieces):
            keys, values = run.copies(numbers[:known], ids)
            numbers, known = numbers[known:], 0
        if not numbers:
            return keys, values
        pieces = [self.pieces[no] for no in numbers[known:]]
        if (
            kind == "list"
            and not known
            and (messages := self._new_messages(numbers, pieces, ids)) is not None
        ):
            return keys, values + messages
        if len(pieces) == 1 and not known and type(pieces[0]) is bytes and self._is_new(numbers[0]):
            found = _split(kind, self._load(pieces[0]))
            self._learn(numbers[0], pieces[0], found[1], ids.get(numbers[0]), kind)
            return keys + found[0], values + found[1]
        loaded = self._loaded(numbers[known:], pieces, ids, kind)
        at = 0
        for stop in [*loaded, len(pieces)]:  # what is cached up to there, then what was decoded
            first = 0 if at == 0 else known + at
            if first < known + stop:
                part = self._copies(numbers[first : known + stop], pieces[at:stop], ids)
                keys += part[0]
                values += part[1]
            if stop < len(pieces):
                keys += loaded[stop][0]
                values += loaded[stop][1]
            at = stop + 1
        return keys, values

    def _new_messages(self, numbers: list[int], pieces: list[Any], ids: Ids) -> list[Any] | None:
        """Messages that are decoded for the first time, all at once; None if any are anything else."""
        met = self._log.cacheable_by_piece
        if len(pieces) < FEW or set(map(type, pieces)) != _STORED or not met.keys().isdisjoint(numbers):
            return None
        messages = self._load_messages(pieces)
        if messages is not None:
            met.update(dict.fromkeys(numbers, True))
            self._learn_messages(numbers, pieces, messages, ids)
        return messages

    def _learn_messages(
        self, numbers: list[int], stored: Sequence[bytes], messages: list[Any], ids: Ids
    ) -> None:
        """`_learn` for the messages of some pieces, which have no extra fields."""
        locations: list[PieceRef] = list(numbers)
        for at, given in enumerate(map(ids.get, numbers)) if ids else ():
            if given is not None:
                messages[at].__dict__["id"] = given[0]
                locations[at] = numbers[at], given[1]
        for at, fields in enumerate(packed := message_keys(messages)):
            if fields is None:
                self._learn(numbers[at], stored[at], [messages[at]], ids.get(numbers[at]), "list")
        self._log.add_locations(
            [
                (key_of(type(message), fields), location)
                for message, fields, location in zip(messages, packed, locations, strict=True)
                if fields is not None
            ]
        )

    def _copies(self, numbers: list[int], pieces: Sequence[CachedPiece], ids: Ids) -> _Parts:
        """Copies of cached pieces. `pieces` are the last of them: those that their run may not have yet."""
        run = self._runs.get(numbers[0])
        if run is None or not self.are_current(run.classes) or not run.extend(numbers, pieces):
            run = Run()
            run.extend(numbers, [self.pieces[no] for no in numbers])
            if len(self._runs) >= MAX_RUNS:
                self._runs.clear()
            self._runs[numbers[0]] = run
        return run.copies(numbers, ids)

    def _loaded(self, numbers: list[int], pieces: list[Any], ids: Ids, kind: str) -> dict[int, _Parts]:
        """Decode the pieces that are not cached. Returns them by their place.

        Those decoded before are cached: they are put into `pieces` instead.
        """
        first: list[int] = []
        again: list[int] = []
        for at, piece in enumerate(pieces):
            if type(piece) is CachedPiece and not self.are_current(piece.classes):
                pieces[at] = self.pieces[numbers[at]] = piece.stored
            if type(pieces[at]) is bytes:
                (first if self._is_new(numbers[at]) else again).append(at)
        found: dict[int, _Parts] = {}
        for at, (loaded, _) in zip(first, self._decoded([pieces[at] for at in first]), strict=True):
            found[at] = parts = _split(kind, loaded)
            self._learn(numbers[at], pieces[at], parts[1], ids.get(numbers[at]), kind)
        # In a call of its own: messages read in one share their sets of fields, and these are not handed out.
        for at, (loaded, is_built) in zip(again, self._decoded([pieces[at] for at in again]), strict=True):
            no, stored = numbers[at], pieces[at]
            parts = _split(kind, loaded)
            if (given := ids.get(no)) is not None:
                parts[1][0].__dict__["id"] = given[0]
            if is_built and (cached := self._cached(no, stored, parts, given)) is not None:
                pieces[at] = cached
            else:
                found[at] = parts
        return dict(sorted(found.items())) if again else found

    def _decoded(self, parts: list[bytes]) -> Iterable[tuple[Any, bool]]:
        """Decode in one call, and tell of each whether it is built: what is not may be later."""
        if len(parts) >= FEW and (messages := self._load_messages(parts)) is not None:
            return [([message], True) for message in messages]
        before = unbuilt_count()
        found = self._load_all(parts)
        if unbuilt_count() == before:
            return [(loaded, True) for loaded in found]
        return [self._decoded_alone(part) for part in parts]

    def _decoded_alone(self, part: bytes) -> tuple[Any, bool]:
        before = unbuilt_count()
        return self._load(part), unbuilt_count() == before

    def _learn(
        self, no: int, stored: bytes, values: list[Any], given: tuple[str, int] | None, kind: str
    ) -> None:
        """Record where a part is stored, so that it is known when it is put again."""
        message: Any = values[0] if len(values) == 1 and kind == "list" else None
        location: PieceRef = no
        key = None
        if type(message) in MESSAGE_CLASSES:
            if given is not None:
                message.__dict__["id"] = given[0]
                location = no, given[1]
            fields = message_key(message)
            key = None if fields is None else key_of(type(message), fields)
        if key is None:
            key, location = key_of(kind, stored), no
        self._log.add_location(key, location)

    def _is_new(self, no: int) -> bool:
        """Whether a piece is decoded for the first time."""
        met = self._log.cacheable_by_piece
        if no in met:
            return False
        met[no] = True
        return True

    def _cached(
        self, no: int, stored: bytes, parts: _Parts, given: tuple[str, int] | None
    ) -> CachedPiece | None:
        """A piece that is decoded again, to be handed out as copies from now on. None if it cannot be."""
        met = self._log.cacheable_by_piece
        if not met[no]:
            return None
        piece = CachedPiece.of(*parts, stored, given)
        if piece is None:
            met[no] = False
        else:
            self._log.record_decoded(self.pieces, no, piece, 3 * len(stored) + 1000)
        return piece

    def are_current(self, classes: Iterable[type]) -> bool:
        """Whether classes are still what their modules have under their names: a reload replaces them."""
        current = self._current
        for cls in classes:
            if cls not in current:
                current[cls] = lookup(cls.__module__, cls.__name__, cls.__qualname__) is cls
            if not current[cls]:
                return False
        return True

    def _dict(self, manifest: list[Any], base: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        ((items, start),) = mf.items_of(manifest, base)
        for part in self._gathered(items, start):
            if type(part[0]) is int:
                keys, values = self._parts(part, _NO_IDS, "dict")
                if not _TEXT.issuperset(map(type, keys)):  # others hash as their writer chose
                    raise DecodeError("a dict that is stored in parts has a key that is no text: damaged")
                out.update(zip(keys, values, strict=True))
            else:
                out[part[0]] = self.decode(part[1], base)
        return out
