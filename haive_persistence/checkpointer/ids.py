"""Ids as LangGraph's users pass them, checked at the door, and the fixed-width keys made of them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from haive_persistence.errors import InvalidIdentifierError, InvalidInputError

MAX_ID = 1024  # characters
MAX_NS = 64 * 1024  # characters: subgraphs in subgraphs, each with its task's id
_TEXT_ID = b"\xff"  # before an id that is not a UUID
_FILLER = b"\x00"  # after one that would have a UUID's length: it still sorts before what it begins


def check_text(what: str, value: str, *, empty: bool = False, most: int = MAX_ID) -> str:
    """The string, if Postgres can hold it exactly. Raises InvalidIdentifierError otherwise."""
    if not value and not empty:
        raise InvalidIdentifierError(f"{what} is empty: give a non-empty string")
    if len(value) > most:
        raise InvalidIdentifierError(f"{what} has {len(value)} characters; at most {most} are accepted")
    if "\x00" in value:
        raise InvalidIdentifierError(
            f"{what} {shown(value)} contains a NUL character, which Postgres cannot store"
        )
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidIdentifierError(
            f"{what} {shown(value)} contains a lone surrogate: it is not valid Unicode"
        ) from exc
    return value


def shown(value: object) -> str:
    """The value as an error shows it, in at most 100 characters."""
    try:
        text = repr(value)
    except Exception:  # a user's class, or an int of more digits than Python writes out
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:97]}…"


def thread_id_text(thread_id: object, what: str = "thread_id") -> str:
    """A thread id as text: `str`, `int` and `UUID` are accepted; 7 and "7" are the same thread."""
    if isinstance(thread_id, str):
        return check_text(what, str(thread_id))
    if isinstance(thread_id, uuid.UUID):
        return str(thread_id)
    if isinstance(thread_id, int) and not isinstance(thread_id, bool):
        if thread_id.bit_length() > 3 * MAX_ID:  # Python may refuse to write it out
            raise InvalidIdentifierError(f"{what} is an int of more than {MAX_ID} digits")
        return check_text(what, str(thread_id))
    raise InvalidIdentifierError(
        f"{what} must be a str, an int or a UUID, not {type(thread_id).__name__}: {shown(thread_id)}"
    )


def check_mapping(what: str, value: object) -> None:
    """Raise InvalidInputError unless the value is a mapping or None."""
    if type(value) is not dict and value is not None and not isinstance(value, Mapping):
        raise InvalidInputError(f"{what} must be a dict or None, not {type(value).__name__}: {shown(value)}")


def check_str(what: str, value: object) -> None:
    """Raise InvalidInputError unless the value is a str."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{what} must be a str, not {type(value).__name__}: {shown(value)}")


def check_limit(limit: object) -> int | None:
    """Raise InvalidInputError unless a limit is None or a number from 0 on."""
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0):
        return limit
    raise InvalidInputError(f"limit must be None or an int from 0 on, not {shown(limit)}")


def check_list(what: str, values: object) -> list[Any]:
    """The values of a sequence. Raises InvalidInputError for anything else, a single string included."""
    if type(values) is list or (
        isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping))
    ):
        return list(values)
    raise InvalidInputError(f"{what} must be a sequence, not {type(values).__name__}: {shown(values)}")


def configurable_of(config: object, what: str = "config") -> Mapping[str, Any]:
    """The `configurable` part of a config. Raises InvalidInputError if there can be none."""
    if type(config) is dict and type(found := config.get("configurable")) is dict:
        return found  # nearly always
    check_mapping(what, config)
    found = config.get("configurable") if isinstance(config, Mapping) else None
    check_mapping(f'{what}["configurable"]', found)
    return found if isinstance(found, Mapping) else {}


def checkpoint_id_of(configurable: Mapping[str, Any]) -> bytes | None:
    given = configurable.get("checkpoint_id")
    return None if given is None or (isinstance(given, str) and not given) else encode_id(given)


def _digest(size: int, *parts: str) -> bytes:
    h = blake2b(digest_size=size)
    for part in parts:
        data = part.encode()
        h.update(len(data).to_bytes(4, "big"))
        h.update(data)
    return h.digest()


@lru_cache(4096)
def thread_key(tenant: str, thread_id: str) -> uuid.UUID:
    """The 128-bit key of a tenant's thread: BLAKE2b of both, each with its length in front."""
    return uuid.UUID(bytes=_digest(16, tenant, thread_id))


@lru_cache(4096)
def ns_key(ns: str) -> int:
    """The 64-bit key of a checkpoint namespace on the line 0; on another one, XOR the line's number."""
    return digest64("", ns)


def line_name(line_no: int) -> str:
    """The name of a line that has no other one."""
    return f"@{line_no:x}"


def digest64(*parts: str) -> int:
    """BLAKE2b of some texts, each with its length in front, as a signed 64-bit number."""
    return int.from_bytes(_digest(8, *parts), "big", signed=True)


def run_key(run_id: str, blind: bytes | None) -> int:
    """The 64-bit key by which a run's checkpoints are found; of a sealed run, its `blind` hash."""
    return int.from_bytes((blind or _digest(8, "run", run_id))[:8], "big", signed=True)


ROOT_NS_KEY = ns_key("")


@lru_cache(4096)
def _tenant_digest(tenant: str) -> bytes:
    return _digest(3, "tenant", tenant)


def listing_key(tenant: str, checkpoint_id: bytes) -> int:
    """The 64-bit key by which a tenant's checkpoints are listed, in the order of their ids."""
    return int.from_bytes(_tenant_digest(tenant) + checkpoint_id[:5].ljust(5, b"\x00"), "big", signed=True)


ABOVE_ALL_IDS = b"\xff" * 5


def encode_id(checkpoint_id: object, what: str = "checkpoint_id") -> bytes:
    """A checkpoint's or task's id as bytes that sort as the ids do: 16 for a UUID, else its text."""
    if not isinstance(checkpoint_id, str):
        raise InvalidIdentifierError(
            f"{what} must be a str, not {type(checkpoint_id).__name__}: {shown(checkpoint_id)}"
        )
    if len(checkpoint_id) == 36 and (data := _uuid_bytes(checkpoint_id)):
        return data
    text = _TEXT_ID + check_text(what, checkpoint_id, empty=what == "task_id").encode()
    return text + _FILLER if len(text) == 16 else text


@lru_cache(maxsize=1024)  # an id comes with its put, with each of its writes, and as a parent
def _uuid_bytes(text: str) -> bytes | None:
    """16 bytes for a UUID as Python writes it; None for any other text."""
    try:
        data = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return None
    return data if uuid_text(data) == text else None


@lru_cache(maxsize=1024)
def decode_id(data: bytes) -> str:
    """The id that `encode_id` encoded. Only a UUID takes 16 bytes, and no text has the byte 0xff."""
    return uuid_text(data) if len(data) == 16 else data.strip(_TEXT_ID + _FILLER).decode()


def uuid_text(data: bytes) -> str:
    """16 bytes as `str(uuid.UUID(bytes=data))` writes them, four times as fast."""
    h = data.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def pack_uuid(id_: str) -> bytes | str:
    """A message's id in 16 bytes if it is a UUID as Python writes it."""
    return (_uuid_bytes(id_) if len(id_) == 36 else None) or id_


def unpack_uuid(packed: bytes | str) -> str:
    return packed if isinstance(packed, str) else uuid_text(packed)


_UUID = re.compile(rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


def pack_uuids(data: bytes) -> list[bytes]:
    """The bytes in parts: every second part is a UUID that was written out in them, as 16 bytes."""
    parts = _UUID.split(data)
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    parts[1::2] = (bytes.fromhex(part.replace(b"-", b"").decode()) for part in parts[1::2])
    return parts


def unpack_uuids(parts: Sequence[bytes]) -> bytes:
    """The bytes that `pack_uuids` packed."""
    return b"".join(uuid_text(part).encode() if at % 2 else part for at, part in enumerate(parts))


def _branch_of(configurable: Mapping[str, Any]) -> str | None:
    branch = configurable.get("branch")
    if branch is None:
        return None
    if not isinstance(branch, str):
        raise InvalidIdentifierError(f"branch must be a str, not {type(branch).__name__}: {shown(branch)}")
    return check_text("branch", branch)


class Address:
    """The target of a config: a thread, a branch, a namespace and maybe a checkpoint.

    `ns_key` is that of the line 0 until `put_on` says where on the branch something is put.
    """

    __slots__ = (
        "branch",
        "checkpoint_id",
        "given_thread_id",
        "line_no",
        "ns",
        "ns_key",
        "parent_ns_key",
        "shown_writes",
        "thread",
        "thread_id",
    )

    line_no: int | None
    parent_ns_key: int | None
    shown_writes: frozenset[int] | None

    def __init__(self, config: Mapping[str, Any], tenant: str) -> None:
        configurable = configurable_of(config)
        if "thread_id" not in configurable:
            raise InvalidInputError('the config has no thread_id: pass {"configurable": {"thread_id": "…"}}')
        self.given_thread_id = configurable["thread_id"]
        self.thread_id = thread_id_text(self.given_thread_id)
        ns = configurable.get("checkpoint_ns")
        if ns is None:
            ns = ""
        if not isinstance(ns, str):
            raise InvalidIdentifierError(f"checkpoint_ns must be a str, not {type(ns).__name__}: {shown(ns)}")
        self.ns = check_text("checkpoint_ns", ns, empty=True, most=MAX_NS) if ns else ""
        self.ns_key = ns_key(ns) if ns else ROOT_NS_KEY
        self.thread = thread_key(tenant, self.thread_id)
        self.checkpoint_id = checkpoint_id_of(configurable)
        self.branch = _branch_of(configurable)
        self.line_no = self.parent_ns_key = self.shown_writes = None

    def put_on(self, line_no: int, parent_line: int, shown_writes: frozenset[int] | None) -> None:
        """Set the line to put on, and the line of the parent.

        `shown_writes`: of the parent's writes on its own line, those that this line shows; None for all.
        """
        ns = ns_key(self.ns)
        self.ns_key = ns ^ line_no
        self.line_no = line_no or None
        self.parent_ns_key = None if parent_line == line_no else ns ^ parent_line
        self.shown_writes = shown_writes

    def on_branch(self, branch: str) -> Address:
        """The same on another branch."""
        there = copy(self)
        there.branch = branch
        return there

    @classmethod
    def of_row(cls, thread: uuid.UUID, thread_id: str, ns_key: int, checkpoint_id: bytes) -> Address:
        """The address of a row that was found. Its namespace's name is known by its body only."""
        address = cls.__new__(cls)
        address.thread, address.ns_key, address.checkpoint_id = thread, ns_key, checkpoint_id
        address.thread_id = address.given_thread_id = thread_id
        address.ns = ""
        address.branch = address.line_no = address.parent_ns_key = address.shown_writes = None
        return address

    def config_or_head(self) -> dict[str, Any]:
        """The config of the checkpoint, or of the latest one if the address names none."""
        if self.checkpoint_id is not None:
            return self.config(self.checkpoint_id)
        found = self.config(b"")
        del found["configurable"]["checkpoint_id"]
        return found

    def config(self, checkpoint_id: bytes) -> dict[str, Any]:
        configurable = {
            "thread_id": self.given_thread_id,
            "checkpoint_ns": self.ns,
            "checkpoint_id": decode_id(checkpoint_id),
        }
        if self.branch is not None:
            configurable["branch"] = self.branch
        return {"configurable": configurable}
