"""Values of pandas come back with their dtypes, units, zones, indexes and missing values."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import ormsgpack
import pytest

from haive_persistence.codec import SafeSerializer, is_unbuilt
from haive_persistence.errors import EncodeError

pd = pytest.importorskip("pandas")
SERDE = SafeSerializer()
PARIS = ZoneInfo("Europe/Paris")
MOMENTS = pd.to_datetime([1_730_000_000_123_456_789, 0, None])


def round_trip(value: Any) -> Any:
    return SERDE.loads_typed(SERDE.dumps_typed({"value": [value]}))["value"][0]


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2024-10-27T02:30:00.123456789"),
        pd.Timestamp("2024-07-27T02:30", tz=PARIS),
        pd.Timestamp("2024-10-27T02:30", tz=dt.timezone(dt.timedelta(hours=2))),
        pd.Timestamp("2024-10-27T02:30", tz="UTC").as_unit("s"),
        pd.Timestamp(dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=PARIS)),
        pd.Timestamp("1500-01-01").as_unit("s"),
        pd.Timedelta(5, "ns"),
        pd.Timedelta(days=-3).as_unit("ms"),
    ],
    ids=repr,
)
def test_moments(value: Any) -> None:
    back = round_trip(value)
    assert type(back) is type(value)
    assert (back, back.unit) == (value, value.unit)
    if isinstance(value, pd.Timestamp):
        assert (back.tzinfo, back.fold, back.isoformat()) == (value.tzinfo, value.fold, value.isoformat())


def test_missing_values_are_the_same_objects() -> None:
    assert round_trip(pd.NaT) is pd.NaT
    assert round_trip(pd.NA) is pd.NA


COLUMNS = {
    "int": [1, 2, 3],
    "small": np.array([1, 2, 3], dtype="u1"),
    "float": [1.5, float("nan"), -0.0],
    "bool": [True, False, True],
    "moment": MOMENTS,
    "seconds": MOMENTS.as_unit("s"),
    "zoned": MOMENTS.tz_localize("UTC").tz_convert(PARIS),
    "delta": pd.to_timedelta([1, 2, None], unit="s"),
    "object": pd.Series(["a", None, (1, [2])], dtype=object),
    "text": pd.Series(["a", None, "é"], dtype="string"),
    "nullable": pd.array([1, None, 3], dtype="Int64"),
    "flags": pd.array([True, None, False], dtype="boolean"),
    "category": pd.Categorical(["x", None, "x"], categories=["y", "x"], ordered=True),
    "default": ["a", "b", "c"],
}
INDEXES = [
    pd.RangeIndex(3),
    pd.RangeIndex(5, 11, 2, name="n"),
    pd.Index(["a", "b", "c"], name="letters"),
    pd.Index([1.5, 2.5, 3.5]),
    pd.date_range("2024-01-01", periods=3, freq="D", tz=PARIS),
    pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["x", None]),
    pd.CategoricalIndex(["a", "b", "a"]),
    pd.to_timedelta([1, 2, 3], unit="s"),
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)
def test_frames(index: Any) -> None:
    frame = pd.DataFrame(COLUMNS)
    frame.index = index
    frame.attrs["source"] = ("x", 1)
    back = round_trip(frame)
    pd.testing.assert_frame_equal(back, frame, check_freq=True, check_exact=True)
    assert type(back.index) is type(frame.index)
    assert back.attrs == frame.attrs
    assert back["object"].iloc[2] == (1, [2])


@pytest.mark.parametrize("name", COLUMNS)
def test_series(name: str) -> None:
    series = pd.Series(COLUMNS[name], name=(name, 1))
    back = round_trip(series)
    pd.testing.assert_series_equal(back, series, check_exact=True)
    assert back.name == (name, 1)
    assert back.dtype == series.dtype


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)
def test_indexes(index: Any) -> None:
    pd.testing.assert_index_equal(round_trip(index), index, exact=True)


def test_frames_with_columns_of_any_name() -> None:
    for frame in (
        pd.DataFrame(),
        pd.DataFrame({1: [1], "a": [2], ("x", 2): [3]}),
        pd.DataFrame([[1, 2]], columns=["same", "same"]),
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
        pd.DataFrame(index=["a", "b"]),
    ):
        pd.testing.assert_frame_equal(round_trip(frame), frame)


def test_what_is_not_known_is_refused_with_what_to_store() -> None:
    class Frame(pd.DataFrame):  # type: ignore[misc, name-defined]
        pass

    for value, advice in [
        (Frame({"a": [1]}), "DataFrame"),
        (pd.Period("2024-01"), "str"),
        (pd.DataFrame({"a": pd.arrays.SparseArray([1, 2])}), "astype"),
        (pd.DataFrame({"a": [object()]}), "dataclass"),
    ]:
        with pytest.raises(EncodeError, match=advice):
            SERDE.dumps_typed(value)


@pytest.mark.parametrize(
    "payload",
    [[], [1], [[["numpy", 7]], ["range", 0, 1, 1, None], ["range", 0, 1, 1, None], {}], "x"],
    ids=str,
)
@pytest.mark.parametrize("name", ["DataFrame", "Series", "Index", "Timestamp", "Timedelta", "NaT"])
def test_damaged_forms_are_not_built(name: str, payload: Any) -> None:
    if (name, payload) != ("NaT", []):
        data = ormsgpack.packb(ormsgpack.Ext(1, ormsgpack.packb(["pandas", name, payload])))
        assert is_unbuilt(SERDE.loads_typed(("msgpack", data)))


@pytest.mark.parametrize(
    "payload",
    [
        ["multi", [["range", 0, 1 << 40, 1, None]], [[0]], [None]],
        ["array", ["category", [0], ["range", 0, 1 << 40, 1, None], True], None, None],
    ],
    ids=["levels", "categories"],
)
def test_a_long_range_is_not_written_out(payload: Any) -> None:
    """80 bytes that would be memory for a million million numbers."""
    data = ormsgpack.packb(ormsgpack.Ext(1, ormsgpack.packb(["pandas", "Index", payload])))
    assert is_unbuilt(SERDE.loads_typed(("msgpack", data)))


def test_a_process_without_pandas_hands_it_on() -> None:
    data = SERDE.dumps_typed([pd.DataFrame({"a": [1]}), pd.Timestamp("2024-01-01")])[1]
    code = f"""
import sys
from haive_persistence.codec import SafeSerializer
serde = SafeSerializer()
value = serde.loads_typed(("msgpack", {data!r}))
assert "pandas" not in sys.modules
assert serde.dumps_typed(value)[1] == {data!r}
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
