"""The guide's table of what comes back as what, ours and PostgresSaver's, is what both of them do.

python -m tests.checkpointer.test_types_table DSN    # writes it into the guide
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import logging
import sys
import uuid
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from pydantic import AnyUrl, BaseModel

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database
from tests.builders import store, thread
from tests.codec.same import same

pd = pytest.importorskip("pandas")
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
START, END = "<!-- types: written by tests/checkpointer/test_types_table.py -->\n", "<!-- end -->\n"


class Colour(enum.Enum):
    RED = "red"
    CORNER = (1, 1)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Item:
    number: int


class Model(BaseModel):
    value: Any


class Text(str):
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


class Mine(HumanMessage):
    extra: int = 0


ROWS: dict[str, Any] = {
    "`None`, `bool`, `int`, `float`, `str`, `bytes`, `list`, `dict`": [
        None,
        True,
        1,
        1.5,
        "x",
        b"x",
        [1],
        {"a": 1},
    ],
    "`int` beyond 64 bits, `str` with a lone surrogate": [2**70, "\ud800"],
    "`dict` with tuples as keys": {(1, (2,)): 3},
    "`dict` with enums or dates as keys": {Colour.RED: 1, dt.date(2024, 1, 1): 2},
    "`tuple`": (1, (2,)),
    "`set`, `frozenset`": [{1, 2}, frozenset({1})],
    "`set` of tuples": {(1, 2)},
    "`bytearray`, `memoryview` in another value": [bytearray(b"x"), memoryview(b"x")],
    "`OrderedDict`": OrderedDict(b=1, a=2),
    "`defaultdict(list)`": defaultdict(list, a=[1]),
    "`defaultdict(lambda: 0)`": defaultdict(lambda: 0, a=1),
    "`Counter`": Counter("aab"),
    "`deque(maxlen=3)`": deque([1, 2], maxlen=3),
    "subclass of `str`": Text("x"),
    "subclass of `dict`": Table(a=1),
    "exception": ValueError("x", 1),
    "`datetime` of a `ZoneInfo`, with `fold`": dt.datetime(
        2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1
    ),
    "`Decimal`, `UUID`": [Decimal("1.50"), uuid.UUID(int=1)],
    "path": Path("/a"),
    "enum, named tuple, dataclass": [Colour.RED, Pair(1, Item(2)), Item(1)],
    "enum with a tuple as value": Colour.CORNER,
    "pydantic model": Model(value=[1]),
    "pydantic's `AnyUrl` and its like, in a model too": Model(value=AnyUrl("http://a")),
    "dataclass in a model's field of type `Any`": Model(value=Item(1)),
    "subclass of a message": Mine("x", extra=1),
    "dataclass in a message's `additional_kwargs`": HumanMessage("x", additional_kwargs={"item": Item(1)}),
    "numpy array": np.arange(3),
    "numpy number": np.float32(0.5),
    "`pandas.Timestamp`": pd.Timestamp("2024-01-01T00:00:00.123456789"),
    "`pandas.NaT`": pd.NaT,
    "`pandas.DataFrame`": pd.DataFrame({"a": [1, 2], "b": pd.array([1, None], dtype="Int64")}),
    "function, lock, generator": [len],
}


def is_same(one: Any, other: Any) -> bool:
    if isinstance(other, list):
        return type(one) is list and len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(other, np.ndarray):
        return type(one) is np.ndarray and one.dtype == other.dtype and bool((one == other).all())
    if isinstance(other, pd.DataFrame):
        return type(one) is pd.DataFrame and one.equals(other) and list(one.dtypes) == list(other.dtypes)
    return type(one) is type(other) and (one is other or same(one, other))


def named(value: Any) -> str:
    cls = type(value)
    return f"`{cls.__name__}`"


def outcome(saver: BaseCheckpointSaver[Any], label: str, value: Any) -> str:
    """What becomes of a value that is put and read again."""
    config = thread(f"types {label}")
    try:
        store(saver, {"value": value}, config)  # type: ignore[arg-type]
    except Exception as error:
        return f"refused: `{type(error).__name__}`"
    found = saver.get_tuple(config)  # type: ignore[arg-type]
    assert found is not None
    read = found.checkpoint["channel_values"].get("value")
    if is_same(read, value):
        return "the same"
    if not isinstance(value, list):
        inner = getattr(read, "value", None) if isinstance(value, Model) else None
        if isinstance(value, HumanMessage) and type(read) is type(value):
            inner = read.additional_kwargs.get("item")
        return (
            f"holds a {named(inner)}"
            if type(read) is type(value) and inner is not None
            else changed(read, value)
        )
    different = [one for one, other in zip(read, value, strict=True) if not is_same(one, other)]
    return ", ".join(dict.fromkeys(map(named, different))) + " in its place"


def changed(read: Any, value: Any) -> str:
    return "the value is changed" if type(read) is type(value) else named(read)


def table(ours: BaseCheckpointSaver[Any], theirs: BaseCheckpointSaver[Any]) -> str:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = [
                f"| {label} | {outcome(ours, label, value)} | {outcome(theirs, label, value)} |\n"
                for label, value in ROWS.items()
            ]
    finally:
        logging.disable(logging.NOTSET)
    return (
        "| put into the state | read from `Checkpointer` | read from `PostgresSaver` |\n|---|---|---|\n"
        + "".join(rows)
    )


def split() -> tuple[str, str, str]:
    before, rest = GUIDE.read_text().split(START)
    written, after = rest.split(END)
    return before, written, after


def columns(text: str, *wanted: int) -> list[list[str]]:
    return [[line.split("|")[at] for at in wanted] for line in text.strip().splitlines()]


def test_the_guides_table_is_true(database: Database, dsn: str) -> None:
    with PostgresSaver.from_conn_string(dsn) as theirs:
        theirs.setup()
        now = table(Checkpointer(database), theirs)
    assert columns(split()[1], 1, 2) == columns(now, 1, 2)
    if version("langgraph-checkpoint").startswith(
        "4.3."
    ):  # what the incumbent does was read off this release
        assert columns(split()[1], 3) == columns(now, 3)


def write(dsn: str) -> None:
    first, _, last = split()
    with PostgresSaver.from_conn_string(dsn) as theirs:
        theirs.setup()
        GUIDE.write_text(f"{first}{START}\n{table(Checkpointer(dsn), theirs)}\n{END}{last}")


if __name__ == "__main__":
    from tests.checkpointer import test_types_table  # so that its classes can be found by their module

    test_types_table.write(sys.argv[1])
