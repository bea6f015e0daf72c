"""The description of a value by the pieces it is made of. Pure: bytes and numbers, no database.

A thread owns an append-only log of immutable *pieces*, each known by its number. A value is
described by a *manifest*, which names pieces instead of holding them:

    None, a bool, int, float or str, {} or []      itself
    bytes           another small value, serialised in place
    [0, no]         a value that is piece `no`
    [1, items]      a list: its items one after the other
    [1, items, items]   the same, with the pieces that give ids to messages stored before they had one; the
                        last message's id may stand at the end itself, as [id, None]
    [1, items, items, items]   the same, with those that give ids to many
    [2, items]      a dict: its items one after the other
    [3, node, m]    a `Send` to `node` whose argument is manifest `m`
    [4, m]          a `_DeltaSnapshot` of manifest `m`
    [5, bytes, uuid, bytes, …]  a small value, serialised, whose UUIDs take 16 bytes each

    items           a flat array of
                        start, n (n > 0)           pieces start … start+n-1, each a slice of the list
                                                   (or dict), serialised
                        no, 0, first, count        `count` numbers of sequence piece `no`, from `first`
                        [key | None, m]            one element (entry) with a manifest of its own

Numbers in `items` are written as differences to the number expected next, at first to where such
pieces begin in the block of `base` (`_FROM`, `start_of`), so that an append-only list is one range and costs
a few bytes however long it is. A sequence that falls into many ranges
is written once as a *sequence piece*, and from then on named by a slice of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import ormsgpack

from haive_persistence.checkpointer.storage.piece_numbers import (
    IDS,
    JOINED_IDS,
    LISTS,
    OTHER,
    ranges,
    start_of,
)
from haive_persistence.codec.limits import MAX_READ_BYTES, Budget
from haive_persistence.codec.msgpack_guard import MUST_CHECK, check_counts, is_suspicious
from haive_persistence.errors import DecodeError

LEAF, LIST, DICT, SEND, SNAPSHOT, PACKED = range(6)

INLINE = 0  # in place of an id piece's number: the id is in the manifest

_FROM = {LIST: (LISTS, IDS, JOINED_IDS), DICT: (OTHER,)}

Manifest = Any  # as drawn above; only a list that is not empty names pieces
Entry = tuple[str | None, Manifest]  # (key or None, manifest) of one element that has its own


class Slice(NamedTuple):
    """`length` numbers of the sequence piece `no`, from `first`."""

    no: int
    first: int
    length: int


Part = int | Slice | Entry  # a piece, a slice of a sequence piece, an element with its own manifest

MAX_NESTING = 64  # of manifests in manifests; writers stop at 16
_UNPACKED = 8  # sequences that stay unpacked
NUMBER_BYTES = 64  # that the number of a piece takes in memory, about
SEQUENCE_BYTES = 64  # a sequence whose ranges take more than this becomes a sequence piece


def pack(value: object) -> bytes:
    """Manifests and records as bytes: plain msgpack, no extension types."""
    return ormsgpack.packb(value)


def unpack(data: bytes) -> Any:
    if MUST_CHECK and is_suspicious(data):
        check_counts(data)
    return ormsgpack.unpackb(data)


def items_of(manifest: Manifest, base: int) -> Iterator[tuple[Sequence[Any], int]]:
    """The items of a list or dict (a list's: slices, then ids), each with the number they count from."""
    return zip(manifest[1:], (base + start_of(part) for part in _FROM[manifest[0]]), strict=False)


def encode_items(parts: Iterable[Part], base: int) -> list[Any]:
    """Items as the flat array of the module's docstring; differences start from `base`."""
    out: list[Any] = []
    expected = base
    start = end = -1
    for part in parts:
        if isinstance(part, int):
            if part == end:
                end += 1
                continue
            if start >= 0:
                out += (start - expected, end - start)
                expected = end
            start, end = part, part + 1
            continue
        if start >= 0:
            out += (start - expected, end - start)
            expected, start, end = end, -1, -1
        if isinstance(part, Slice):
            out += (part.no - expected, 0, part.first, part.length)
        else:
            out.append(list(part))
    if start >= 0:
        out += (start - expected, end - start)
    return out


def slices(parts: Sequence[int], no: int, sequence: Sequence[int]) -> Iterator[int | Slice]:
    """The numbers `parts`, with runs that stand in the sequence piece `no` as slices of it."""
    where = {number: at for at, number in enumerate(sequence)}
    at, end = 0, len(parts)
    while at < end:
        first = where.get(parts[at])
        if first is None:
            yield parts[at]
            at += 1
            continue
        count = 1
        while (
            at + count < end
            and first + count < len(sequence)
            and parts[at + count] == sequence[first + count]
        ):
            count += 1
        if count > 2:
            yield Slice(no, first, count)
        else:
            yield from parts[at : at + count]
        at += count


def decode_items(
    items: Sequence[Any], base: int, sequences: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, int] | list[Any]]:
    """Yield `(start, length)` ranges of pieces, and `[key, manifest]` of elements with their own.

    Raises KeyError with the piece's number when a sequence piece is not in `sequences` yet.
    """
    expected, at, end = base, 0, len(items)
    while at < end:
        head = items[at]
        if isinstance(head, list):
            yield head
            at += 1
            continue
        start, length = expected + head, items[at + 1]
        if length:
            yield start, length
            expected = start + length
            at += 2
        else:
            first, count = items[at + 2], items[at + 3]
            yield from ranges(sequences[start][first : first + count])
            at += 4


def sequence_numbers(manifest: Manifest, base: int) -> Iterator[int]:
    """The numbers of the sequence pieces a manifest names, at any depth."""
    if type(manifest) is not list or not manifest:
        return
    kind = manifest[0]
    if kind in (SEND, SNAPSHOT):
        yield from sequence_numbers(manifest[-1], base)
    elif kind in (LIST, DICT):
        for items, start in items_of(manifest, base):
            yield from _sequences_in(items, start, base)


def _sequences_in(items: Sequence[Any], start: int, base: int) -> Iterator[int]:
    expected, at = start, 0
    while at < len(items):
        head = items[at]
        if type(head) is list:
            yield from sequence_numbers(head[1], base)
            at += 1
        elif items[at + 1]:
            expected += head + items[at + 1]
            at += 2
        else:
            yield expected + head
            at += 4


def piece_numbers(
    manifest: Manifest, base: int, sequences: Mapping[int, Sequence[int]], depth: int = 0
) -> Iterator[tuple[int, int]]:
    """Every piece a manifest needs, as `(start, length)`; the sequence pieces included."""
    if depth > MAX_NESTING:
        raise DecodeError("a manifest is damaged: it is nested too deeply")
    if type(manifest) is not list or not manifest:
        return
    kind = manifest[0]
    if kind == LEAF:
        yield base + manifest[1], 1
    elif kind in (SEND, SNAPSHOT):
        yield from piece_numbers(manifest[-1], base, sequences, depth + 1)
    elif kind in (LIST, DICT):
        for no in sequence_numbers(manifest, base):
            yield no, 1
        for items, start in items_of(manifest, base):
            for part in decode_items(items, start, sequences):
                if isinstance(part, tuple):
                    yield part
                else:
                    yield from piece_numbers(part[1], base, sequences, depth + 1)


def single_ranges(manifest: Manifest, base: int) -> list[tuple[int, int]] | None:
    """The pieces of a list or dict that is one range of them, and one of ids; None if it is anything else."""
    if type(manifest) is not list or not manifest or manifest[0] not in _FROM:
        return None
    found: list[tuple[int, int]] = []
    for items, start in items_of(manifest, base):
        if len(items) != 2 or type(items[0]) is not int or not items[1]:
            return None
        found.append((start + items[0], items[1]))
    return found


def rebase(manifest: Manifest, by: int) -> Manifest:
    """The same manifest, counted from a base that is `by` lower."""
    if type(manifest) is not list or not manifest or by == 0 or manifest[0] == PACKED:
        return manifest
    kind = manifest[0]
    if kind == LEAF:
        return [LEAF, manifest[1] + by]
    if kind in (SEND, SNAPSHOT):
        return [*manifest[:-1], rebase(manifest[-1], by)]
    return [kind, *(_rebase_items(items, by) for items in manifest[1:])]


def _rebase_items(items: Sequence[Any], by: int) -> list[Any]:
    out: list[Any] = []
    at, moved = 0, False
    while at < len(items):
        head = items[at]
        if type(head) is list:
            out.append([head[0], rebase(head[1], by)])
            at += 1
            continue
        width = 2 if items[at + 1] else 4
        out += (head if moved else head + by, *items[at + 1 : at + width])
        moved = moved or width == 2
        at += width
    return out


def encode_ids(no: int, ids: Iterable[tuple[int, bytes | str]]) -> bytes:
    """An id piece as piece `no`: message pieces, as differences to the one before, each with its id."""
    out: list[Any] = []
    before = no
    for piece, id_ in ids:
        out += (piece - before, id_)
        before = piece
    return pack(out)


def decode_ids(no: int, data: bytes) -> list[tuple[int, bytes | str]]:
    """The message pieces of id piece `no`, with the id of each."""
    flat = unpack(data)
    pieces = list(accumulate(flat[::2], initial=no))[1:]
    return list(zip(pieces, flat[1::2], strict=True))


def encode_sequence(numbers: Sequence[int]) -> bytes:
    """A sequence piece as a piece: its numbers as ranges, differences from the first."""
    base = numbers[0] if numbers else 0
    out = [base]
    expected = base
    for start, length in ranges(numbers):
        out += (start - expected, length)
        expected = start + length
    return pack(out)


def decode_sequence(data: bytes, budget: Budget | None = None) -> list[int]:
    """The numbers of a sequence piece; `budget` is asked for their memory."""
    budget = Budget(MAX_READ_BYTES) if budget is None else budget
    base, *steps = unpack(data)
    budget.spend(NUMBER_BYTES * sum(map(abs, steps[1::2])))
    out: list[int] = []
    expected = base
    for at in range(0, len(steps), 2):
        start = expected + steps[at]
        expected = start + steps[at + 1]
        out.extend(range(start, expected))
    return out


class PackedSequences(dict[int, list[int]]):
    """A thread's sequence pieces, each unpacked when a manifest names it.

    All of them unpacked may take far more memory than any one of them: a few of moderate size stay.
    """

    def __init__(self, packed: Mapping[int, bytes], max_bytes: int) -> None:
        super().__init__()
        self._packed = packed
        self._max_bytes = max_bytes

    def __missing__(self, no: int) -> list[int]:
        numbers = decode_sequence(self._packed[no], Budget(self._max_bytes))
        if NUMBER_BYTES * len(numbers) <= self._max_bytes // (2 * _UNPACKED):
            if len(self) == _UNPACKED:
                del self[next(iter(self))]
            self[no] = numbers
        return numbers
