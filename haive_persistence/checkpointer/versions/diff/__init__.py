"""Differences between two states: structured, exact and JSON. Pure: no database.

    diff = compare_states({"messages": old}, {"messages": new})
    print(diff.to_text())

`views.py` sees a value as one of a few shapes, `canonical.py` gives its JSON form and says what is equal,
`lists.py` says which elements belong together, `compare.py` makes the tree of `model.py`, `result.py` is
what a caller gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haive_persistence.checkpointer.versions.diff.canonical import state_json
from haive_persistence.checkpointer.versions.diff.compare import Comparer
from haive_persistence.checkpointer.versions.diff.model import (
    Added,
    Change,
    ChannelSummary,
    Element,
    ListEdited,
    MapEdited,
    MembersEdited,
    Removed,
    Replaced,
    TextEdited,
)
from haive_persistence.checkpointer.versions.diff.result import Diff
from haive_persistence.checkpointer.versions.diff.text import Edit
from haive_persistence.checkpointer.versions.diff.tokens import (
    TokenList,
    TokenState,
    positions_to_decode,
)
from haive_persistence.errors import InvalidInputError

__all__ = [
    "Added",
    "Change",
    "ChannelSummary",
    "Diff",
    "Edit",
    "Element",
    "ListEdited",
    "MapEdited",
    "MembersEdited",
    "Removed",
    "Replaced",
    "TextEdited",
    "TokenList",
    "TokenState",
    "compare_states",
    "positions_to_decode",
    "state_json",
]


def compare_states(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    include_details: bool = True,
    names: tuple[str, str] = ("before", "after"),
) -> Diff:
    """Find everything that differs between two states.

    Values are equal if their types and parts are: `1`, `1.0` and `True` differ, `0.0` and `-0.0` too, NaN
    equals NaN. The order of keys does not count. No code of a value's class runs, `__eq__` included.
    Elements of a list that have an `id` (messages, rows, models) are recognised by it: they can be edited
    and moved. Texts are compared per word. Bytes, and what only its own library can take apart, are compared
    by a digest.

    Args:
        before: The first state, values by channel: a dict, or a `TokenState`.
        after: The second state. Lists of both may be `TokenList`s; only what their tokens do not show to be
            equal is decoded.
        include_details: False finds only which channels differ, and in how many entries.
        names: What to call the two states when the diff is shown.

    Returns:
        The differences; false if there are none.

    Raises:
        InvalidInputError: A state is no mapping with text keys, or contains itself: compare what is stored,
            or plain data.
    """
    for state in (before, after):
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers err
            raise InvalidInputError(
                f"a state is a mapping from channels to values, not a {type(state).__name__}"
            )
    return Diff(Comparer(details=include_details).channels(before, after), names, include_details)
