"""Lists and states whose parts are decoded when they are compared, and only if their tokens differ.

A token stands for a part's contents: equal tokens mean equal parts. Different tokens mean nothing; the
parts are then decoded and compared. The number of a stored piece is a token within its thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, overload

from haive_persistence.checkpointer.versions.diff.sequences import longest_increasing

Pair = tuple[int, int]


class TokenList(Sequence[Any]):
    """A list whose elements are decoded when they are read.

    It compares as the `list` of its elements. Tokens of two lists must come from one numbering.

    Args:
        tokens: A token for each element. Equal tokens stand for equal elements.
        load: Decodes the element at an index. It is called at most once per index.
    """

    def __init__(self, tokens: Sequence[Hashable], load: Callable[[int], Any]) -> None:
        self.tokens = tokens
        self._load = load
        self._loaded: dict[int, Any] = {}

    @property
    def decoded(self) -> int:
        """The number of elements decoded so far."""
        return len(self._loaded)

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError("the list has no element of this index")
        index %= len(self)
        if index not in self._loaded:
            self._loaded[index] = self._load(index)
        return self._loaded[index]


class TokenState(Mapping[str, Any]):
    """A state whose channels are decoded when they are read.

    Args:
        tokens: A token for each channel. Equal tokens stand for equal values.
        load: Decodes the value of a channel. It is called at most once per channel.
    """

    def __init__(self, tokens: Mapping[str, Hashable], load: Callable[[str], Any]) -> None:
        self.tokens = tokens
        self._load = load
        self._loaded: dict[str, Any] = {}

    @property
    def decoded(self) -> int:
        """The number of channels decoded so far."""
        return len(self._loaded)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __contains__(self, channel: object) -> bool:
        return channel in self.tokens

    def __getitem__(self, channel: str) -> Any:
        if channel not in self._loaded:
            if channel not in self.tokens:
                raise KeyError(channel)
            self._loaded[channel] = self._load(channel)
        return self._loaded[channel]


def token_pairs(before: Sequence[Hashable], after: Sequence[Hashable], start: int, end: int) -> list[Pair]:
    """The pairs of positions that equal tokens stand at, between the ends: the n-th here, the n-th there."""
    there = {key: at for at, key in _numbered(after, start, len(after) - end)}
    return [(at, there[key]) for at, key in _numbered(before, start, len(before) - end) if key in there]


def _numbered(tokens: Sequence[Hashable], start: int, stop: int) -> Iterator[tuple[int, Hashable]]:
    """Each position with its token and the number of equal ones before it."""
    seen: Counter[Hashable] = Counter()
    for at in range(start, stop):
        token = tokens[at]
        yield at, (token, seen[token])
        seen[token] += 1


def pairs_in_order(pairs: Sequence[Pair]) -> list[Pair]:
    """As many pairs, of those ascending in their first position, as ascend in the second one too."""
    return [pairs[n] for n in longest_increasing([there for _, there in pairs])]


def positions_to_decode(before: Sequence[Hashable], after: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The positions of both lists that a comparison decodes, if equal elements have equal tokens.

    For a caller that reads many stored pieces at once before it compares. A comparison decodes further
    elements only behind one that equals another of a different token.

    Args:
        before: The tokens of the first list.
        after: The tokens of the second list.

    Returns:
        The positions in the first list, and those in the second, in ascending order.
    """
    start, end = _common_ends(before, after)
    pairs = pairs_in_order(token_pairs(before, after, start, end))
    here = _all_but([i for i, _ in pairs], start, len(before) - end)
    there = _all_but([j for _, j in pairs], start, len(after) - end)
    return here, there


def _all_but(paired: list[int], start: int, stop: int) -> list[int]:
    """The positions in a range that are not paired, and both of its ends, which are compared first."""
    known = set(paired) - {start, stop - 1}
    return [at for at in range(start, stop) if at not in known]


def _common_ends(before: Sequence[Hashable], after: Sequence[Hashable]) -> Pair:
    """The numbers of elements that both begin with, and that both end with; they do not overlap."""
    shorter = min(len(before), len(after))
    start = end = 0
    while start < shorter and before[start] == after[start]:
        start += 1
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return start, end
