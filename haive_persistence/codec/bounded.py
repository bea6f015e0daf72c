"""Standard values whose constructors import, or take unbounded time: built within limits only."""

from __future__ import annotations

import os
import re
import sys
import zoneinfo
from collections.abc import Iterator
from typing import Any, Final

from haive_persistence.codec.core_schema import CodeNeededError

if sys.version_info >= (3, 11):
    from re import _constants as _codes  # pyright: ignore[reportAttributeAccessIssue]
    from re import _parser as _parser  # pyright: ignore[reportAttributeAccessIssue]
else:
    import sre_constants as _codes  # pyright: ignore[reportMissingImports]
    import sre_parse as _parser  # pyright: ignore[reportMissingImports]

_MAX_PATTERN: Final = 2_000  # characters
_MAX_RANGES: Final = 70_000  # characters that compiling without regard to case looks at one by one
_KEY: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")


def zone(key: Any) -> zoneinfo.ZoneInfo:
    """The time zone of this name. Raises CodeNeededError where finding it would import a package."""
    if type(key) is not str or not _KEY.fullmatch(key):
        raise ValueError("not the name of a time zone")
    folder, _, _ = key.rpartition("/")
    module = ".".join(["tzdata.zoneinfo", *folder.split("/")]).rstrip(".")
    if module in sys.modules or any(os.path.isfile(os.path.join(path, key)) for path in zoneinfo.TZPATH):
        return zoneinfo.ZoneInfo(key)
    raise CodeNeededError("this machine has no such file in zoneinfo.TZPATH")


def pattern(source: Any, flags: Any) -> re.Pattern[Any]:
    """The compiled pattern. Raises ValueError if it is long, or compiling it would take long."""
    if type(source) not in (str, bytes) or type(flags) is not int:
        raise ValueError("not a pattern")
    if flags & re.DEBUG:
        raise ValueError("a stored pattern that prints itself is not compiled")
    if len(source) > _MAX_PATTERN:
        raise ValueError(f"a stored pattern of more than {_MAX_PATTERN:,} characters is not compiled")
    try:
        if sum(_ranges(_parser.parse(source, flags))) > _MAX_RANGES:
            raise ValueError("a stored pattern of so large ranges of characters is not compiled")
        return re.compile(source, flags)
    except RecursionError:
        raise ValueError("a stored pattern of so many groups in groups is not compiled") from None


def _ranges(parsed: Any) -> Iterator[int]:
    """The sizes of all ranges of characters in a parsed pattern."""
    if isinstance(parsed, (list, tuple)) or hasattr(parsed, "data"):
        if isinstance(parsed, tuple) and len(parsed) == 2 and parsed[0] is _codes.RANGE:
            yield parsed[1][1] - parsed[1][0]
            return
        for part in getattr(parsed, "data", parsed):
            yield from _ranges(part)
