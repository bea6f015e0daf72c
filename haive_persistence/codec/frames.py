"""pandas: what its values are written as, and how they are built again, of the same dtypes.

A column of numbers or moments is a numpy array, one of objects a list, one of an extension type what that
is made of. Nothing is written that pandas or Arrow would have to parse. pandas is never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_POS_ARGS

from haive_persistence.codec.core_schema import CodeNeededError

_UNITS: Final = frozenset({"s", "ms", "us", "ns"})
_NUMBERS: Final = frozenset(
    ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64")
)
_NULLABLE: Final = _NUMBERS | {"boolean"}
_MAX_RANGE: Final = 1 << 24  # numbers of a range that pandas may write out


_Describe = Callable[[Any, Any], tuple[str, list[Any]]]


def _pandas() -> Any:
    found = sys.modules.get("pandas")
    if found is None:
        raise CodeNeededError("import pandas before reading")
    return found


def is_of_pandas(obj: Any) -> bool:
    """True for what pandas defines, and for instances of subclasses: described here or refused."""
    if "pandas" not in sys.modules:
        return False
    return any(base.__module__.partition(".")[0] == "pandas" for base in type(obj).__mro__)


def describe(obj: Any) -> tuple[int, Any]:
    """The extension of a value of pandas. Raises TypeError, with what to store instead."""
    pd = _pandas()
    if obj is pd.NaT or obj is pd.NA:
        return EXT_CONSTRUCTOR_POS_ARGS, ["pandas", "NaT" if obj is pd.NaT else "NA", []]
    describer = _describers(pd).get(type(obj))
    if describer is None:
        raise TypeError(f"a pandas {type(obj).__name__} cannot be stored: {_advice(pd, obj)}")
    name, args = describer(pd, obj)
    return EXT_CONSTRUCTOR_POS_ARGS, ["pandas", name, args]


def _advice(pd: Any, obj: Any) -> str:
    if isinstance(obj, pd.DataFrame):
        return "store pandas.DataFrame(value)"
    return "store value.astype(object), or its parts" if hasattr(obj, "astype") else "store str(value)"


def _describers(pd: Any) -> dict[type, _Describe]:
    indexes = (
        pd.Index,
        pd.RangeIndex,
        pd.DatetimeIndex,
        pd.TimedeltaIndex,
        pd.MultiIndex,
        pd.CategoricalIndex,
    )
    return {
        pd.Timestamp: _timestamp,
        pd.Timedelta: _timedelta,
        pd.Series: _series,
        pd.DataFrame: _frame,
        **dict.fromkeys(indexes, _whole_index),
    }


def _timedelta(pd: Any, obj: Any) -> tuple[str, list[Any]]:
    return "Timedelta", [int(obj.asm8.view("i8")), obj.unit]


def _series(pd: Any, obj: Any) -> tuple[str, list[Any]]:
    return "Series", [_column(pd, obj), _index(pd, obj.index), obj.name, dict(obj.attrs)]


def _whole_index(pd: Any, obj: Any) -> tuple[str, list[Any]]:
    return "Index", _index(pd, obj)


def _timestamp(pd: Any, obj: Any) -> tuple[str, list[Any]]:
    return "Timestamp", [int(obj.asm8.view("i8")), obj.unit, obj.tzinfo, obj.fold]


def _frame(pd: Any, obj: Any) -> tuple[str, list[Any]]:
    columns = [_column(pd, obj.iloc[:, at]) for at in range(obj.shape[1])]
    return "DataFrame", [columns, _index(pd, obj.columns), _index(pd, obj.index), dict(obj.attrs)]


def _index(pd: Any, index: Any) -> list[Any]:
    if type(index) is pd.RangeIndex:
        return ["range", index.start, index.stop, index.step, index.name]
    if type(index) is pd.MultiIndex:
        levels = [_index(pd, level) for level in index.levels]
        return ["multi", levels, [list(map(int, codes)) for codes in index.codes], list(index.names)]
    freq = getattr(index, "freqstr", None)
    return ["array", _column(pd, index), index.name, freq]


def _column(pd: Any, column: Any) -> list[Any]:
    """The values of a Series or an Index, with their dtype."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        codes = column.cat.codes if hasattr(column, "cat") else column.codes
        return ["category", codes.astype("int64").tolist(), _index(pd, dtype.categories), bool(dtype.ordered)]
    if isinstance(dtype, pd.DatetimeTZDtype):
        values = column.to_numpy(dtype=f"M8[{dtype.unit}]")
        return ["zoned", values, dtype.tz]
    if str(dtype) in _NULLABLE:
        return ["nullable", str(dtype), column.astype(object).tolist()]
    if isinstance(dtype, pd.StringDtype):
        missing = "nan" if dtype.na_value is not pd.NA else "NA"
        values = [None if pd.isna(value) else value for value in column.astype(object).tolist()]
        return ["string", dtype.storage, missing, values]
    plain = isinstance(dtype, sys.modules["numpy"].dtype)  # not a sparse, period, interval or Arrow type
    if plain and dtype.kind == "O":
        return ["object", list(column.array)]
    if plain and dtype.kind in "biufcmM":
        return ["numpy", column.to_numpy()]
    raise TypeError(f"a column of dtype {dtype} cannot be stored: store value.astype(object)")


# --- and back ---------------------------------------------------------------------------------


def _build_timestamp(pd: Any, value: Any, unit: Any, zone: Any, fold: Any) -> Any:
    made = pd.Timestamp(_moment(pd, "datetime64", value, unit))
    if zone is not None:
        made = made.tz_localize("UTC").tz_convert(zone)
    return made if made.fold == fold else made.replace(fold=fold)


def _moment(pd: Any, kind: str, value: Any, unit: Any) -> Any:
    if type(value) is not int or unit not in _UNITS:
        raise ValueError("not a moment")
    return getattr(sys.modules["numpy"], kind)(value, unit)


def _build_index(pd: Any, kind: str, *parts: Any) -> Any:
    if kind == "range":
        start, stop, step, name = parts
        return pd.RangeIndex(start, stop, step, name=name)
    if kind == "multi":
        levels, codes, names = parts
        built = [_build_level(pd, *level) for level in levels]
        return pd.MultiIndex(levels=built, codes=codes, names=names)
    column, name, freq = parts
    made = pd.Index(_build_column(pd, *column), name=name)
    if freq is not None:
        if len(freq) > 20:
            raise ValueError("not a frequency")
        made = type(made)(made, freq=freq, name=name)
    return made


def _build_level(pd: Any, *parts: Any) -> Any:
    made = _build_index(pd, *parts)
    if type(made) is pd.RangeIndex and made.size > _MAX_RANGE:
        raise ValueError("a range of too many numbers")
    return made


def _build_column(pd: Any, kind: str, *parts: Any) -> Any:
    """An array that pandas takes as it is."""
    if kind == "numpy":
        return _numbers(parts[0])
    if kind == "object":
        made = sys.modules["numpy"].empty(len(parts[0]), dtype=object)
        for at, value in enumerate(parts[0]):
            made[at] = value
        return pd.array(made, dtype=object) if hasattr(pd, "NumpyExtensionArray") else made
    if kind == "category":
        codes, categories, ordered = parts
        dtype = pd.CategoricalDtype(_build_level(pd, *categories), ordered=bool(ordered))
        return pd.Categorical.from_codes(codes, dtype=dtype)
    if kind == "zoned":
        values, zone = parts
        return pd.DatetimeIndex(_numbers(values)).tz_localize("UTC").tz_convert(zone).array
    if kind == "nullable" and parts[0] in _NULLABLE:
        return pd.array(parts[1], dtype=parts[0])
    if kind == "string":
        return _build_strings(pd, *parts)
    raise ValueError("not a column")


def _build_strings(pd: Any, storage: str, missing: str, values: list[Any]) -> Any:
    if storage not in ("python", "pyarrow") or not all(
        value is None or type(value) is str for value in values
    ):
        raise ValueError("not a column of text")
    if storage == "pyarrow" and "pyarrow" not in sys.modules:
        raise CodeNeededError("import pyarrow before reading")
    if missing == "NA":
        return pd.array(values, dtype=pd.StringDtype(storage))
    return pd.array(values, dtype=pd.StringDtype(storage, na_value=float("nan")))


def _numbers(values: Any) -> Any:
    numpy = sys.modules["numpy"]
    if type(values) is not numpy.ndarray or values.ndim != 1:
        raise ValueError("not a column of numbers")
    return values


def _build_series(pd: Any, column: Any, index: Any, name: Any, attrs: Any) -> Any:
    made = pd.Series(_build_column(pd, *column), index=_build_index(pd, *index), name=name)
    made.attrs.update(attrs)
    return made


def _build_frame(pd: Any, columns: Any, names: Any, index: Any, attrs: Any) -> Any:
    built = _build_index(pd, *index)
    made = pd.DataFrame(
        {at: pd.Series(_build_column(pd, *c), index=built) for at, c in enumerate(columns)}, index=built
    )
    made.columns = _build_index(pd, *names)
    made.attrs.update(attrs)
    return made


def _build_timedelta(pd: Any, value: Any, unit: Any) -> Any:
    return pd.Timedelta(_moment(pd, "timedelta64", value, unit))


def _build_nat(pd: Any) -> Any:
    return pd.NaT


def _build_na(pd: Any) -> Any:
    return pd.NA


_BUILDERS: dict[str, Callable[..., Any]] = {
    "NaT": _build_nat,
    "NA": _build_na,
    "Timestamp": _build_timestamp,
    "Timedelta": _build_timedelta,
    "Index": _build_index,
    "Series": _build_series,
    "DataFrame": _build_frame,
}


def build(name: str, code: int, payload: Any, extras: Mapping[str, Any]) -> Any:
    """The value of pandas that `describe` wrote under this name."""
    if code != EXT_CONSTRUCTOR_POS_ARGS:
        raise ValueError("not a form that this package writes")
    return _BUILDERS[name](_pandas(), *payload)


NAMES = tuple(_BUILDERS)
