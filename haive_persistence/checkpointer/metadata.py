"""A checkpoint's metadata: what is stored of it, what is searchable in SQL, and how filters compare."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, CheckpointMetadata

from haive_persistence.checkpointer.ids import check_mapping
from haive_persistence.codec import blind_index


def stored_metadata(config: Mapping[str, Any], metadata: CheckpointMetadata) -> dict[str, Any]:
    """A checkpoint's metadata with the run's scalars, as LangGraph's own savers keep it."""
    check_mapping("metadata", metadata)
    check_mapping('config["metadata"]', config.get("metadata"))
    kept: dict[str, Any] = {k: v for k, v in (metadata or {}).items() if k != "writes"}
    for source in (config.get("metadata"), config.get("configurable")):
        for key, value in (source or {}).items():
            if key in kept or key in _NOT_METADATA or str(key).startswith("__"):
                continue
            if isinstance(value, (str, int, float)):
                kept[key] = value
    return kept


#: LangGraph's own, and the branch, whose name may be changed.
_NOT_METADATA = frozenset({*EXCLUDED_METADATA_KEYS, "writes", "branch"})


def signature(metadata: Mapping[str, Any], index_key: bytes | None) -> dict[str, int | None]:
    """The bits by which SQL finds a checkpoint: some for each scalar of its metadata that is not usual.

    A filter that matches the metadata has a signature whose bits are all in it (`filter_signature`); the
    reverse is left to `contains`. With a key, whoever reads the table learns which pairs of key and value
    are equal, and nothing else.
    """
    bits = pairs = 0
    for key, value in metadata.items():
        kind = type(value)
        if type(key) is not str:
            return _ALL_BITS  # an enum, say, comes back as the text it is stored as
        if kind in _SCALARS:
            if not _is_usual(key, kind, value):
                bits |= _pair_bits(index_key, key, kind, value)
                pairs += 1
        elif kind not in _CONTAINERS:
            return _ALL_BITS  # it may be equal to whatever it likes
    high, low = divmod(bits, 1 << 63)
    if pairs <= FEW_PAIRS:
        return {"signature_1": high | low or None, "signature_2": None}
    return {"signature_1": high, "signature_2": low}


def filter_signature(wanted: Mapping[str, Any], index_key: bytes | None) -> dict[str, int] | None:
    """The bits of the scalars of a filter; None if it has none, so that the metadata alone decides."""
    bits = 0
    for key, value in wanted.items():
        kind = type(value)
        if type(key) is str and kind in _SCALARS and not _is_usual(key, kind, value):
            bits |= _pair_bits(index_key, key, kind, value)
    high, low = divmod(bits, 1 << 63)
    return {"signature": high | low, "signature_1": high, "signature_2": low} if bits else None


def _is_usual(key: str, kind: type, value: Any) -> bool:
    """True for what nearly every checkpoint has: it takes no bits, and the metadata decides about it."""
    return (key == "step" and kind in _NUMBERS) or (
        key == "source" and kind is str and value in _USUAL_SOURCES
    )


def _pair_bits(index_key: bytes | None, key: str, kind: type, value: Any) -> int:
    """The bits of one pair. `kind` keeps values apart that are equal, such as 1 and True."""
    if kind is str and len(value) > _LONG:
        return _hash_pair(index_key, key, kind, value)
    return _remembered(index_key, key, kind, value)


def _hash_pair(index_key: bytes | None, key: str, kind: type, value: Any) -> int:
    if value != value:
        return 0  # NaN is not even equal to itself
    digest = int.from_bytes(blind_index(index_key or b"", f"metadata {key}", value), "big")
    bits = 0
    for _ in range(BITS_PER_PAIR):
        digest, place = divmod(digest, SIGNATURE_BITS)
        bits |= 1 << place
    return bits


_remembered = lru_cache(maxsize=4096)(_hash_pair)


# Ten pairs set 38 % of the bits: then 3 of 1,000 checkpoints have the bits of a pair that they do not have.
# So do five pairs in half of the bits, and most metadata has fewer: both halves then go into one column.
SIGNATURE_BITS = 126  # two columns of 63: a sign bit would spoil their order
BITS_PER_PAIR = 6
FEW_PAIRS = 5
_LONG = 256  # characters; longer texts are hashed each time
_ALL_BITS: dict[str, int | None] = {"signature_1": (1 << 63) - 1, "signature_2": (1 << 63) - 1}
_USUAL_SOURCES = frozenset({"input", "loop"})
_NUMBERS = frozenset({int, float})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset, bytes})


def contains(value: Any, wanted: Any) -> bool:
    """Whether `value` has all of `wanted`, as Postgres's `@>` has it: objects by key, arrays as sets."""
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            k in value and contains(value[k], v) for k, v in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return isinstance(value, (list, tuple)) and all(any(contains(v, w) for v in value) for w in wanted)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)
