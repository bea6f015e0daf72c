"""Reads the 'json' type of old LangGraph releases: messages and standard values only, import-free."""

from __future__ import annotations

import json
from typing import Any

from haive_persistence.codec.decoding import Reader
from haive_persistence.errors import DecodeError


def read_json(data: bytes, reader: Reader) -> Any:
    """Read what LangGraph wrote before msgpack; DecodeError if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"stored JSON is damaged: {exc}") from exc
