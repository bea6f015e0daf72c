"""Texts that can be stored."""

from __future__ import annotations


def is_utf8(text: str) -> bool:
    """True if a text has no lone surrogate, which UTF-8 cannot say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
