"""Values to msgpack, in the form LangGraph's own serialiser writes and reads.

Most values go the fast way: one call of `ormsgpack.packb`, which asks `_default` about every object
it does not know, and refuses what it cannot say (a lone surrogate, an integer beyond 64 bits). It also
refuses dict keys that are not text, because allowing them would turn enums, dates and UUIDs into text
silently; where the keys are seen to be numbers and the like, `_default_any_key` allows them. What is
still refused, `_Careful` walks in Python, rewrites just those parts, and names the path of a part that
cannot be stored at all. `describing.py` says what an object is written as.
"""

from __future__ import annotations

from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_DELTA_SNAPSHOT,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)

from haive_persistence._text import is_utf8
from haive_persistence.codec.describing import EXACT, Describer, describe_tuple, find_describer
from haive_persistence.errors import EncodeError

_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
)
_LEAVES = EXACT | {bytearray, memoryview}
_MAX_DESCRIBERS = 4096
_describers: dict[type, Describer] = {tuple: describe_tuple}


def encode(value: Any) -> bytes:
    """Serialise `value`; EncodeError names the part that cannot be stored."""
    try:
        return _pack(value)
    except ormsgpack.MsgpackEncodeError:
        pass
    try:
        return _pack_any_key(value)
    except (ormsgpack.MsgpackEncodeError, RecursionError):
        return _Careful().encode(value)


def _pack(value: Any) -> bytes:
    # a function of its own: writing must reach Python's recursion limit before reading would
    return ormsgpack.packb(value, default=_default, option=_OPTIONS)


def _default(obj: Any) -> Any:
    described = (_describers.get(type(obj)) or _describer(obj))(obj)
    if type(described) is not tuple:
        return described
    code, payload = described
    return ormsgpack.Ext(code, _pack(payload))


def _pack_any_key(value: Any) -> bytes:
    if not _has_plain_keys(value):
        raise ormsgpack.MsgpackEncodeError("a dict key that msgpack would change")
    return ormsgpack.packb(value, default=_default_any_key, option=_OPTIONS | ormsgpack.OPT_NON_STR_KEYS)


def _default_any_key(obj: Any) -> Any:
    described = (_describers.get(type(obj)) or _describer(obj))(obj)
    if type(described) is not tuple:
        return described
    code, payload = described
    return ormsgpack.Ext(code, _pack_any_key(payload))


def _has_plain_keys(value: Any) -> bool:
    """True if msgpack keeps the keys of all dicts in this value (but for those inside objects)."""
    if type(value) is dict:
        if not EXACT.issuperset(map(type, value)):
            return False
        value = value.values()
    elif type(value) is not list:
        return True
    return _LEAVES.issuperset(map(type, value)) or all(
        _has_plain_keys(part) for part in value if type(part) not in _LEAVES
    )


def _describer(obj: Any) -> Describer:
    """The describer of objects of this class; remembered per class."""
    describer = find_describer(obj, encode)
    if obj.__class__ is type(obj):
        if len(_describers) >= _MAX_DESCRIBERS:
            _describers.clear()
            _describers[tuple] = describe_tuple
        _describers[type(obj)] = describer
    return describer


# --- the careful way --------------------------------------------------------------------------

_ATOMS = frozenset({float, bool, bytes, bytearray, memoryview, type(None)})
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


class _Careful:
    """Rewrites the parts of a value that msgpack cannot say, and knows where it is."""

    def __init__(self) -> None:
        self._path: list[tuple[str, Any]] = []  # where the walk is; read when something fails

    def encode(self, value: Any) -> bytes:
        try:
            return self._pack(value)
        except RecursionError:
            text = "it contains itself, or is nested too deeply"
            raise EncodeError(f"cannot store value{_where(self._path[:4])}…: {text}") from None
        except Exception as exc:  # an object's own code: its __getattr__, its model_dump, its __str__
            raise EncodeError(f"cannot store value{_where(self._path)}: {exc}") from exc

    def _pack(self, value: Any) -> bytes:
        return ormsgpack.packb(self._rewrite(value), option=_OPTIONS | ormsgpack.OPT_NON_STR_KEYS)

    def _at(self, step: str, key: Any, value: Any) -> Any:
        self._path.append((step, key))
        rewritten = self._rewrite(value)
        self._path.pop()
        return rewritten

    def _rewrite(self, value: Any) -> Any:
        cls = type(value)
        if cls in _ATOMS:
            return value
        if cls is str:
            return _rewrite_str(value)
        if cls is int:
            return _rewrite_int(value)
        if cls is dict:
            return self._rewrite_dict(value)
        if cls is list:
            return [self._at("[{}]", index, part) for index, part in enumerate(value)]
        return self._describe(value)

    def _rewrite_dict(self, value: dict[Any, Any]) -> Any:
        if all(map(_is_plain_key, value)):
            return {key: self._at("[{}]", key, part) for key, part in value.items()}
        pairs = [[self._at(" key {}", key, key), self._at("[{}]", key, part)] for key, part in value.items()]
        return _extension(EXT_CONSTRUCTOR_SINGLE_ARG, ["builtins", "dict", pairs])

    def _describe(self, value: Any) -> Any:
        described = (_describers.get(type(value)) or _describer(value))(value)
        if isinstance(described, str):
            return _rewrite_str(described)
        if isinstance(described, ormsgpack.Ext):
            return described
        code, payload = described
        if code == EXT_DELTA_SNAPSHOT:
            return ormsgpack.Ext(code, self._pack(payload))
        # an object's fields are named as its attributes; all else is named by where it is in it
        first, second, body, *rest = payload
        if code in _FIELDS and isinstance(body, dict):
            body = {self._rewrite(key): self._at(".{}", key, part) for key, part in body.items()}
        else:
            body = self._rewrite(body)
        return _extension(code, [first, second, body, *map(self._rewrite, rest)])


def _where(path: list[tuple[str, Any]]) -> str:
    return "".join(step.format(key if step == ".{}" else _short(key)) for step, key in path)


def _short(key: Any) -> str:
    try:
        text = ascii(key)
    except Exception:  # an integer of thousands of digits, or a repr that fails
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 80 else text[:79] + "…"


_FIELDS = frozenset({EXT_CONSTRUCTOR_KW_ARGS, EXT_PYDANTIC_V1, EXT_PYDANTIC_V2})


def _extension(code: int, payload: Any) -> Any:
    return ormsgpack.Ext(code, ormsgpack.packb(payload, option=_OPTIONS | ormsgpack.OPT_NON_STR_KEYS))


def _rewrite_str(value: str) -> Any:
    if is_utf8(value):
        return value
    data = value.encode("utf-8", "surrogatepass")
    return _extension(EXT_CONSTRUCTOR_POS_ARGS, ["builtins", "str", [data, "utf-8", "surrogatepass"]])


def _rewrite_int(value: int) -> Any:
    if _INT64_MIN <= value <= _UINT64_MAX:
        return value
    # hexadecimal: Python limits the length of decimal text, and reads it in quadratic time
    return _extension(EXT_CONSTRUCTOR_POS_ARGS, ["builtins", "int", [hex(value), 16]])


def _is_plain_key(key: Any) -> bool:
    """True if msgpack keeps this dict key as it is (enums, dates and UUIDs it would turn into text)."""
    cls: type = type(key)
    if cls is tuple:
        return all(map(_is_plain_key, key))
    if cls is str:
        return is_utf8(key)
    if cls is int:
        return bool(_INT64_MIN <= key <= _UINT64_MAX)
    return cls in EXACT
