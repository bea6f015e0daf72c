"""A checkpoint's metadata: what is stored of it, what is searchable in SQL, and how filters compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, CheckpointMetadata


def stored_metadata(config: Mapping[str, Any], metadata: CheckpointMetadata) -> dict[str, Any]:
    """A checkpoint's metadata with the run's scalars, as LangGraph's own savers keep it."""
    kept: dict[str, Any] = {k: v for k, v in metadata.items() if k != "writes"}
    for source in (config.get("metadata"), config.get("configurable")):
        for key, value in (source or {}).items():
            if key in kept or key in EXCLUDED_METADATA_KEYS or key.startswith("__") or key == "writes":
                continue
            if isinstance(value, (str, int, float)):
                kept[key] = value
    return kept


def labels_of(metadata: Mapping[str, Any], searchable: Sequence[str]) -> str | None:
    """The searchable part of metadata as JSON; None if there is none. What JSON cannot hold is left out."""
    labels: dict[str, Any] = {}
    for key in searchable:
        value = metadata.get(key)
        if isinstance(value, str) and ("\x00" in value or not value.isprintable()):
            continue
        if isinstance(value, (str, bool, int)):
            labels[key] = value
    return json.dumps(labels) if labels else None


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
