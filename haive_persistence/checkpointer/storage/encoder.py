"""Values to manifests and pieces. Pure: no database.

Which parts of a value become pieces is decided by the value alone, never by its history, so the
same part always has the same bytes and is stored once per thread:

* a list or a dict with string keys is split when it holds LangChain messages or is large;
* a list's pieces are slices of it: one element each, or up to 64 small ones (at a fixed grid, so
  that an append rewrites the last slice only); a dict's pieces are slices of its entries;
* everything else is one piece, or stays in the manifest when it is tiny.

Slices are serialised as a list (or dict), so a part comes back exactly as it would inside the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import islice
from typing import Any, TypeVar, cast

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from haive_persistence._text import is_utf8
from haive_persistence.checkpointer.ids import pack_uuid, pack_uuids
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.messages import MESSAGE_CLASSES, message_key
from haive_persistence.checkpointer.storage.piece_index import Batch, Key, key_of
from haive_persistence.checkpointer.storage.piece_numbers import (
    IDS,
    JOINED_IDS,
    LISTS,
    OTHER,
    part_of,
    start_of,
)
from haive_persistence.codec import Codec, SafeSerializer

TINY = 40  # bytes; serialised values up to this stay in the manifest
SHORT = 128  # bytes; so do serialised values up to this whose UUIDs, packed, leave no more than TINY
LARGE = 1024  # bytes; a channel's list or dict above this is split
LARGE_INSIDE = 32 * 1024  # the same for a list or dict inside another
GRID = 64  # small elements per slice
MAX_DEPTH = 16  # manifests in manifests; what is further inside is one piece
JOIN = 64  # messages that small id pieces give ids, from which on one piece gives them
NESTED_WHOLE = 4  # elements with a manifest of their own per list or dict; the rest are one piece each
_OF_MESSAGES = b"langchain_core.messages"  # in the serialised form of a message
_MESSAGE_SIZE = LARGE_INSIDE + 1  # a message always counts as worth splitting for

_T = TypeVar("_T", list[Any], dict[str, Any])
_SCALARS = frozenset({int, float, bool, type(None)})
_CONTAINERS = frozenset({list, dict})


def rough_size(value: Any, budget: int) -> int:
    """About how many bytes a value takes; stops counting above `budget`."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value) + 2
    if kind in _SCALARS:
        return 2
    if kind in MESSAGE_CLASSES:
        return _MESSAGE_SIZE
    total = 2
    if kind is list or kind is tuple:
        parts = value
    elif kind is dict:
        parts = value.values()
        total += 8 * len(value)
    else:
        return 64
    for part in parts:
        total += rough_size(part, budget - total)
        if total > budget:
            break
    return total


def _is_large(value: Any, threshold: int) -> bool:
    try:
        return rough_size(value, threshold) > threshold
    except RecursionError:  # it contains itself, maybe: the serialiser says so
        return False


def _are_plain(keys: Iterable[Any]) -> bool:
    """Whether all keys are text that a manifest can hold."""
    return set(map(type, keys)) == {str} and is_utf8("".join(keys))


class _Ids:
    """The ids that the messages of one list have in addition to their pieces."""

    __slots__ = ("bare", "by_piece", "new")

    def __init__(self) -> None:
        self.bare: set[int] = set()  # messages without an id: their pieces are given none in this list
        self.by_piece: dict[int, int] = {}  # message piece -> id piece
        self.new: dict[int, tuple[str, Key, Key]] = {}  # message piece -> id, key with it, key without

    def add(self, piece: int, id_: str, key: Key, bare: Key) -> None:
        self.by_piece[piece] = -1
        self.new[piece] = (id_, key, bare)


class _Budget:
    """The number of elements of one list or dict that have a manifest of their own."""

    nested = 0


class Encoder:
    """Turns values into manifests, adding the pieces that are new to `batch`."""

    def __init__(self, codec: Codec, batch: Batch) -> None:
        self._dump: Callable[[Any], bytes] = codec.dump
        # A serialiser of the user's must see every value: it may encrypt.
        self._in_place = isinstance(codec.serde, SafeSerializer)
        self._batch = batch
        self.sequence_nos: set[int] = set()
        self._send_class = getattr(sys.modules.get("langgraph.types"), "Send", None)
        self._depth = 0

    def encode(self, value: Any, threshold: int = LARGE) -> mf.Manifest:
        """The manifest of a value; a list or dict of up to `threshold` bytes stays whole."""
        kind = type(value)
        if self._in_place:
            if kind in _SCALARS:
                return value if kind is not int or -(1 << 63) <= value < 1 << 64 else self._leaf(value)
            if kind in _CONTAINERS and not value:
                # Not the value itself: a node may fill it later, and the manifest is remembered.
                return kind()
            if kind is str and len(value) <= TINY and value.isascii():
                return value
        if kind is list and _is_large(value, threshold):
            return self._list(value)
        if kind is dict and _is_large(value, threshold) and _are_plain(value):
            return [mf.DICT, self._items(self._dict_parts(value), OTHER)]
        if kind is _DeltaSnapshot:
            return [mf.SNAPSHOT, self.encode(value.value)]
        if kind is self._send_class and getattr(value, "timeout", None) is None and type(value.node) is str:
            return [mf.SEND, value.node, self.encode(value.arg)]
        return self._leaf(value)

    def reuse(self, manifest: mf.Manifest, base: int) -> mf.Manifest:
        """A stored manifest, to be stored once more: its pieces are there for good."""
        self.sequence_nos.update(mf.sequence_numbers(manifest, base))
        return mf.rebase(manifest, base - self._batch.base)

    def _leaf(self, value: Any) -> mf.Manifest:
        data = self._dump(value)
        if len(data) <= TINY:
            return data
        if len(data) <= SHORT and len(parts := pack_uuids(data)) > 1 and sum(map(len, parts)) <= TINY:
            return [mf.PACKED, *parts]
        return [mf.LEAF, self._batch.intern("value", data) - self._batch.base]

    # --- lists

    def _list(self, value: list[Any]) -> mf.Manifest:
        ids = _Ids()
        parts = self._list_parts(value, ids)
        inline: list[Any] = []
        if len(ids.new) == 1 and type(parts[-1]) is int and parts[-1] in ids.new:
            inline = [self._inline_id(ids, parts[-1])]
        elif ids.new and not self._give_ids(ids):
            return self._list(value)
        items = self._items(parts, LISTS)
        if not ids.by_piece and not inline:
            return [mf.LIST, items]
        single, *joined = self._id_items(ids.by_piece)
        return [mf.LIST, items, single + inline, *joined]

    def _inline_id(self, ids: _Ids, piece: int) -> list[Any]:
        """The id of a list's last message, in its manifest: the next message shares an id piece with it."""
        id_, key, bare = ids.new[piece]
        del ids.by_piece[piece]
        self._batch.record_location(key, (piece, mf.INLINE))
        self._batch.forget(bare)
        return [pack_uuid(id_), None]

    def _id_items(self, by_piece: dict[int, int]) -> list[list[Any]]:
        """The id pieces of a list; many of few messages each are joined, which are read as one."""
        single = {piece: no for piece, no in by_piece.items() if part_of(no) != JOINED_IDS}
        joined = list(dict.fromkeys(no for no in by_piece.values() if part_of(no) == JOINED_IDS))
        if len(single) >= JOIN:
            given = self._batch.given_ids
            ids = {piece: one[0] for piece in single if (one := given.get(piece)) is not None}
            if len(ids) == len(single):
                joined.append(self._batch.join_ids(ids))
                single = {}
        items = self._items(list(dict.fromkeys(single.values())), IDS)
        return [items, self._items(joined, JOINED_IDS)] if joined else [items]

    def _list_parts(self, value: list[Any], ids: _Ids) -> list[Any]:
        budget = _Budget()
        if not self._is_gridded(value, value):
            return self._elements(value, ids, budget)
        slices = [value[at : at + GRID] for at in range(0, len(value), GRID)]
        return self._by_grid(slices, lambda part: self._elements(part, ids, budget))

    def _is_gridded(self, value: Sized, elements: Iterable[Any]) -> bool:
        return self._in_place and len(value) >= GRID and MESSAGE_CLASSES.isdisjoint(map(type, elements))

    def _by_grid(self, slices: Sequence[_T], encode: Callable[[_T], list[Any]]) -> list[Any]:
        """The parts of a list or dict that is passed in slices of the grid.

        A slice of known exact bytes has the parts it had before: it is serialised in one call.
        """
        parts: list[Any] = []
        for one in slices:
            if len(one) < GRID:
                parts += encode(one)
                continue
            key = key_of("grid", self._dump(one))
            found = self._batch.find_grid(key)
            if found is None:
                found = encode(one)
                # A node may have changed it meanwhile: then these are not the pieces of the bytes above.
                if self._batch.are_stored(found) and key_of("grid", self._dump(one)) == key:
                    self._batch.record_grid(key, found)
            parts += found
        return parts

    def _elements(self, value: list[Any], ids: _Ids, budget: _Budget) -> list[Any]:
        parts: list[Any] = []
        small: list[Any] = []
        for at, element in enumerate(value):
            kind = type(element)
            if kind in _SCALARS or (kind is str and len(element) <= TINY):
                if small and at % GRID == 0:
                    parts.append(self._slice(small))
                    small = []
                small.append(element)
                continue
            if small:
                parts.append(self._slice(small))
                small = []
            if kind in MESSAGE_CLASSES:
                parts.append(self._message(element, ids))
                continue
            data = self._dump([element]) if kind is not self._send_class else b""
            inner = self._nested(element, data, budget)
            if inner is None:
                parts.append(self._batch.intern("list", data or self._dump([element]), LISTS))
            else:
                parts.append((None, inner))
        if small:
            parts.append(self._slice(small))
        return parts

    def _message(self, message: BaseMessage, ids: _Ids, retries: int = 2) -> int:
        """The piece of a list with just this message in it."""
        fields = message_key(message)
        if fields is None:
            return self._slice([message])
        key = key_of(type(message), fields)
        found = self._batch.find(key)
        if type(found) is int:
            if message.id is not None:
                return found
            if found not in ids.by_piece and found not in self._batch.given_ids:
                ids.bare.add(found)
                return found
            return self._unshared(self._dump([message]), ids)
        if found is not None:
            no, id_piece = cast("tuple[int, int]", found)
            given = self._batch.given_ids.get(no)
            if (
                given is not None
                and given[0] == message.id
                and no not in ids.bare
                and (id_piece != mf.INLINE or self._batch.is_stored(given[1]))
                and ids.by_piece.setdefault(no, given[1]) == given[1]
            ):
                return no
            if id_piece == mf.INLINE and self._is_free(no, ids):
                bare = key_of(type(message), cast(bytes, message_key(message, without_id=True)))
                ids.add(no, cast(str, message.id), key, bare)
                return no
        elif message.id is not None and (bare_piece := self._new_id(message, key, fields, ids)) is not None:
            return bare_piece
        data = self._dump([message])
        changed = message_key(message) != fields
        if changed and retries:
            # Changed meanwhile: LangGraph gives a reply its id while another thread stores the node's writes.
            return self._message(message, ids, retries - 1)
        if changed or found is not None:
            # A node keeps changing it (or its piece has another id here): known by its bytes only.
            return self._batch.intern("list", data, LISTS)
        no = self._batch.add(key, data, LISTS)
        if message.id is None:
            ids.bare.add(no)
        return no

    def _unshared(self, data: bytes, ids: _Ids) -> int:
        """A piece of a message without an id that no id piece gives one."""
        no = self._batch.intern("apart", data, LISTS)
        if no in self._batch.given_ids or no in ids.by_piece:
            no = self._batch.add(key_of("apart", data), data, LISTS)
        ids.bare.add(no)
        return no

    def _new_id(self, message: BaseMessage, key: Key, fields: bytes, ids: _Ids) -> int | None:
        """The piece of the same message without its id: it was written before its list gave it one."""
        without_id = message_key(message, without_id=True)
        if without_id is None or message_key(message) != fields:
            return None
        bare = key_of(type(message), without_id)
        found = self._batch.find(bare)
        if type(found) is not int or not self._is_free(found, ids):
            return None
        ids.add(found, cast(str, message.id), key, bare)
        return found

    def _is_free(self, piece: int, ids: _Ids) -> bool:
        """True if no id piece has an id for this piece, and this list has the piece for no other message."""
        return not (piece in ids.by_piece or piece in ids.bare or piece in self._batch.given_ids)

    def _give_ids(self, ids: _Ids) -> bool:
        """Add one piece with the ids that messages of this list got. A piece is given an id once.

        False if a reader found another process's id for one of them after it was seen to have none.
        """
        no = self._batch.give_ids({piece: id_ for piece, (id_, _, _) in ids.new.items()})
        if no is None:
            return False
        for piece, (_, key, bare) in ids.new.items():
            self._batch.record_location(key, (piece, no))
            self._batch.forget(bare)
            ids.by_piece[piece] = no
        return True

    def _nested(self, element: Any, data: bytes, budget: _Budget) -> mf.Manifest | None:
        """The manifest of an element worth splitting, else None. `data`: its serialised form, or nothing."""
        if type(element) not in _CONTAINERS and type(element) is not self._send_class:
            return None
        if data and self._in_place and len(data) <= LARGE_INSIDE and _OF_MESSAGES not in data:
            return None
        if type(element) in _CONTAINERS and not _is_large(element, LARGE_INSIDE):
            return None
        if self._depth == MAX_DEPTH or budget.nested == NESTED_WHOLE:
            return None
        self._depth += 1
        try:
            inner = self.encode(element, LARGE_INSIDE)
        finally:
            self._depth -= 1
        if type(inner) is not list or not inner or inner[0] == mf.LEAF:
            return None
        budget.nested += 1
        return inner

    def _slice(self, elements: list[Any]) -> int:
        return self._batch.intern("list", self._dump(elements), LISTS)

    # --- dicts

    def _dict_parts(self, value: dict[str, Any]) -> list[Any]:
        budget = _Budget()
        if not self._is_gridded(value, value.values()):
            return self._dict_entries(value, budget)
        entries = iter(value.items())
        slices = [dict(islice(entries, GRID)) for _ in range(0, len(value), GRID)]
        return self._by_grid(slices, lambda part: self._dict_entries(part, budget))

    def _dict_entries(self, value: dict[str, Any], budget: _Budget) -> list[Any]:
        parts: list[Any] = []
        small: dict[str, Any] = {}
        for at, (key, element) in enumerate(value.items()):
            kind = type(element)
            if kind in _SCALARS or (kind is str and len(element) + len(key) <= TINY):
                if small and at % GRID == 0:
                    parts.append(self._entries(small))
                    small = {}
                small[key] = element
                continue
            if small:
                parts.append(self._entries(small))
                small = {}
            data = self._dump({key: element}) if kind is not self._send_class else b""
            inner = self._nested(element, data, budget)
            if inner is None:
                parts.append(self._batch.intern("dict", data or self._dump({key: element})))
            else:
                parts.append((key, inner))
        if small:
            parts.append(self._entries(small))
        return parts

    def _entries(self, entries: dict[str, Any]) -> int:
        return self._batch.intern("dict", self._dump(entries))

    # --- sequences of pieces

    def _items(self, parts: list[Any], block_part: int) -> list[Any]:
        """Parts as the items of a manifest; a sequence of many ranges becomes a sequence piece, or names one.

        `block_part`: which part of the block their pieces are from.
        """
        base = self._batch.base + start_of(block_part)
        if len(parts) > GRID and (named := self._after_sequence(parts, base)) is not None:
            return named
        items = mf.encode_items(parts, base)
        if self._fits(items) or not all(type(p) is int for p in parts):
            return items
        for no, numbers in self._batch.candidates():
            sliced = mf.encode_items(mf.slices(parts, no, numbers), base)
            if self._fits(sliced):
                return self._named(no, sliced)
        no = self._batch.add_sequence(list(parts), mf.encode_sequence)
        return self._named(no, [no - base, 0, 0, len(parts)])

    @staticmethod
    def _fits(items: list[Any]) -> bool:
        return len(items) <= 24 or len(mf.pack(items)) <= mf.SEQUENCE_BYTES

    def _after_sequence(self, parts: list[Any], base: int) -> list[Any] | None:
        """The common case of a long list: a sequence piece, then what was appended since."""
        for no, numbers in self._batch.candidates():
            if len(numbers) <= len(parts) and parts[: len(numbers)] == numbers:
                tail: list[Any] = [mf.Slice(no, 0, len(numbers)), *parts[len(numbers) :]]
                items = mf.encode_items(tail, base)
                if self._fits(items):
                    return self._named(no, items)
        return None

    def _named(self, no: int, items: list[Any]) -> list[Any]:
        self._batch.reference(no)
        self.sequence_nos.add(no)
        return items
