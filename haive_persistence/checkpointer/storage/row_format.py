"""The records in the checkpointer's tables: a checkpoint's `body` and a write's `payload`.

Both are msgpack arrays and begin with the number of their format; a reader knows every format
up to its own and says so when it meets a newer one.

    body     the fields of `Body`, in order; the last ones are left out where they are what they usually are
             (`_USUAL_END`), and versions that are numbers are packed as differences (`_pack_versions`)
    payload  [format, base, template, time, task_id, task_path, upsert, manifest, manifest, …]

`base` is the number the manifests count from (in a write, how far below the row's own number that
is). `template` is the piece that holds the names (`CheckpointNames`, `WriteNames`), which hardly change
from one checkpoint of a thread to the next. Times are microseconds since the time in the checkpoint's
UUID version 6, or the whole ISO text (in a write, microseconds since 1970) where that would not say it
exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.types import ERROR

from haive_persistence.checkpointer.ids import decode_id, pack_uuids, unpack_uuids
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.decoder import Decoder
from haive_persistence.checkpointer.storage.encoder import Encoder
from haive_persistence.checkpointer.storage.piece_index import Batch, KnownCheckpoint
from haive_persistence.errors import DecodeError, EncodeError

FORMAT = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_INTS = frozenset({int})
_PULL = "~__pregel_pull, "  # how the path of a task that an edge started begins; its node's name follows
_KNOWN = frozenset(
    {"v", "id", "ts", "channel_values", "channel_versions", "versions_seen", "updated_channels"}
)


def id_time(checkpoint_id: bytes) -> int:
    """Microseconds since 1970 that a UUID of version 6 was made at (RFC 9562, 5.6); 0 for other ids."""
    if len(checkpoint_id) != 16 or checkpoint_id[6] >> 4 != 6:
        return 0
    number = int.from_bytes(checkpoint_id[:8], "big")
    ticks = (number >> 16 << 12) | (number & 0xFFF)  # 100 ns since 1582-10-15
    return (ticks - 0x01B21DD213814000) // 10


def encode_time(ts: Any, checkpoint_id: bytes) -> Any:
    """An ISO timestamp as microseconds after the checkpoint's id, or as it is if that loses anything."""
    if type(ts) is str and ts.endswith("+00:00") and (made := id_time(checkpoint_id)):
        try:
            at = datetime.fromisoformat(ts)
        except ValueError:
            return ts
        if at.isoformat() == ts:
            return (at - _EPOCH) // _MICROSECOND - made
    return ts


def decode_time(ts: Any, checkpoint_id: bytes) -> Any:
    return (
        (_EPOCH + timedelta(microseconds=id_time(checkpoint_id) + ts)).isoformat() if type(ts) is int else ts
    )


def check_format(record: Any, what: str) -> None:
    if type(record) is not list or not record or record[0] != FORMAT:
        found = record[0] if type(record) is list and record else "?"
        raise DecodeError(
            f"a {what} has format {found!r}, this package reads up to {FORMAT}: "
            "it was written by a newer version; upgrade haive-persistence"
        )


class CheckpointNames(NamedTuple):
    """A checkpoint's template: the names whose values its body has, in the same order."""

    channels: list[str]  # that have a version
    seen: list[tuple[str, list[str]]]  # each node with the channels it has seen
    metadata: list[str]
    values: list[str]  # channels that have a value
    extra: list[str]  # keys of the checkpoint that LangGraph added since


class WriteNames(NamedTuple):
    """A write's template."""

    node_path: str | None  # the task's path if it is a node's, the same in every step
    channels: list[str]


class Body(NamedTuple):
    """A checkpoint's record, unpacked; manifests still encoded."""

    format: int
    base: int
    template_offset: int  # above base
    v: int
    ts: Any
    versions: list[Any]
    seen: list[list[Any]]
    updated: list[Any] | None  # places in `CheckpointNames.channels`, or names that are not there
    metadata: list[mf.Manifest]
    values: list[mf.Manifest]
    extra: list[mf.Manifest]
    parent: bytes | None  # set only in sealed threads: the checkpoint cannot be given another parent
    packed_ns: str | list[bytes]  # the namespace's name; with UUIDs in it, the parts of `pack_uuids`
    bound: list[Any] | None  # see `bindings.py`; only in sealed threads
    parent_ns_key: int | None  # of a parent on another line; only in sealed threads

    @property
    def template(self) -> int:
        return self.base + self.template_offset

    @property
    def ns(self) -> str:
        packed = self.packed_ns
        return packed if isinstance(packed, str) else unpack_uuids(packed).decode()

    def manifests(self) -> list[mf.Manifest]:
        """Return every manifest of the checkpoint."""
        return [*self.metadata, *self.values, *self.extra]

    def pack(self) -> bytes:
        fields: list[Any] = list(self)
        fields[_VERSIONS] = _pack_versions(*fields[_VERSIONS])
        for usual in _USUAL_END:
            if fields[-1] != usual:
                break
            fields.pop()
        return mf.pack(fields)


_VERSIONS = slice(5, 7)  # versions, seen
_USUAL_END: tuple[Any, ...] = (None, None, "", None, [])  # the last fields, the last one first: …, extra


def _pack_versions(versions: list[Any], seen: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """Versions with the highest in front, and as differences from it: a byte each instead of three.

    Those that are not all numbers (another saver's are text) stay as they are, with None in front.
    """
    if not versions or not _INTS.issuperset(map(type, chain(versions, *seen))):
        return [None, *versions], seen
    top = max(versions)
    return [top, *[top - v for v in versions]], [[top - v for v in node] for node in seen]


def _unpack_versions(versions: list[Any], seen: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    top, *rest = versions
    if top is None:
        return rest, seen
    return [top - v for v in rest], [[top - v for v in node] for node in seen]


class NewCheckpoint(NamedTuple):
    """A checkpoint that is put, and where."""

    id: bytes
    ns: str
    parent: bytes | None
    checkpoint: Mapping[str, Any]
    metadata: Mapping[str, Any]
    new_versions: Mapping[str, Any]


def encode_checkpoint(
    encoder: Encoder, batch: Batch, new: NewCheckpoint, inherited: KnownCheckpoint | None
) -> tuple[Body, KnownCheckpoint]:
    """Return a checkpoint's record, and what is known of it then.

    Channels whose version is the parent's keep the parent's manifests.
    """
    checkpoint = new.checkpoint
    versions: Mapping[str, Any] = checkpoint["channel_versions"]
    seen: Mapping[str, Mapping[str, Any]] = checkpoint["versions_seen"]
    values: Mapping[str, Any] = checkpoint["channel_values"]
    extra = {k: v for k, v in checkpoint.items() if k not in _KNOWN}
    manifests = {k: _manifest(encoder, k, v, new, inherited) for k, v in values.items()}
    if inherited is not None:
        for k in missing_values(checkpoint, new.new_versions):
            if k in inherited.manifests and inherited.versions.get(k) == versions[k]:
                manifests[k] = encoder.reuse(inherited.manifests[k], inherited.base)
    names = CheckpointNames(
        list(versions),
        [(node, list(v)) for node, v in seen.items()],
        list(new.metadata),
        list(manifests),
        list(extra),
    )
    template = batch.intern("template", mf.pack(names[:]))
    at = {name: i for i, name in enumerate(versions)}
    updated = checkpoint.get("updated_channels")
    body = Body(
        format=FORMAT,
        base=batch.base,
        template_offset=template - batch.base,
        v=checkpoint["v"],
        ts=encode_time(checkpoint["ts"], new.id),
        versions=list(versions.values()),
        seen=[list(v.values()) for v in seen.values()],
        updated=None if updated is None else [at.get(name, name) for name in updated],
        metadata=[encoder.encode(v, 64) for v in new.metadata.values()],
        values=list(manifests.values()),
        extra=[encoder.encode(v) for v in extra.values()],
        parent=None,
        packed_ns=_packed(new.ns),
        bound=None,
        parent_ns_key=None,
    )
    return body, KnownCheckpoint(dict(versions), manifests, batch.base)


def _packed(ns: str) -> str | list[bytes]:
    if not ns:
        return ns
    parts = pack_uuids(ns.encode())
    return parts if len(parts) > 1 else ns


def unchanged(checkpoint: Mapping[str, Any], new_versions: Mapping[str, Any]) -> bool:
    """Whether there are channels that have what their parent has."""
    return not new_versions.keys() >= checkpoint["channel_versions"].keys()


def missing_values(checkpoint: Mapping[str, Any], new_versions: Mapping[str, Any]) -> list[str]:
    """Channels without a value that did not change either: they have what their parent has at that version.

    LangGraph leaves out a `DeltaChannel` that was not written; its last snapshot is still its value.
    """
    values = checkpoint["channel_values"]
    return [k for k in checkpoint["channel_versions"] if k not in values and k not in new_versions]


def _manifest(
    encoder: Encoder, channel: str, value: Any, new: NewCheckpoint, inherited: KnownCheckpoint | None
) -> mf.Manifest:
    if (
        inherited is not None
        and channel not in new.new_versions
        and channel in inherited.manifests
        and inherited.versions.get(channel) == new.checkpoint["channel_versions"].get(channel)
    ):
        return encoder.reuse(inherited.manifests[channel], inherited.base)
    return _encode(encoder, channel, value)


def _encode(encoder: Encoder, channel: str, value: Any) -> mf.Manifest:
    try:
        return encoder.encode(value)
    except EncodeError as error:
        raise EncodeError(f"channel {channel!r}: {error}") from error


def open_body(data: bytes) -> Body:
    fields = mf.unpack(data)
    check_format(fields, "checkpoint")
    if missing := len(Body._fields) - len(fields):
        fields += _USUAL_END[missing - 1 :: -1]
    fields[_VERSIONS] = _unpack_versions(*fields[_VERSIONS])
    body = Body._make(fields)
    if type(body.base) is not int or type(body.template_offset) is not int:
        raise DecodeError("a checkpoint's row names no template: its data is damaged")
    return body


def open_template(data: bytes) -> CheckpointNames | WriteNames:
    fields: Any = mf.unpack(data)
    if type(fields) is not list or not fields:
        raise DecodeError("a row names a piece that is not a template: its data is damaged")
    if type(fields[0]) is list and len(fields) == len(CheckpointNames._fields):
        return CheckpointNames._make(fields)
    node_path: Any = fields[0]
    return WriteNames(node_path, fields[1:])


def metadata_value(body: Body, names: CheckpointNames, key: str, decoder: Decoder) -> Any:
    """Return one metadata value of a checkpoint, or None."""
    if key not in names.metadata:
        return None
    return decoder.decode(body.metadata[names.metadata.index(key)], body.base)


def decode_metadata(body: Body, names: CheckpointNames, decoder: Decoder) -> dict[str, Any]:
    return {k: decoder.decode(m, body.base) for k, m in zip(names.metadata, body.metadata, strict=True)}


def decode_checkpoint(
    body: Body, names: CheckpointNames, checkpoint_id: bytes, decoder: Decoder
) -> dict[str, Any]:
    """Return the checkpoint as it was put, with values of its own."""
    base, channels, updated = body.base, names.channels, body.updated
    checkpoint = {
        "v": body.v,
        "ts": decode_time(body.ts, checkpoint_id),
        "id": decode_id(checkpoint_id),
        "channel_values": {
            k: decoder.decode(m, base) for k, m in zip(names.values, body.values, strict=True)
        },
        "channel_versions": dict(zip(channels, body.versions, strict=True)),
        "versions_seen": {
            node: dict(zip(keys, seen, strict=True))
            for (node, keys), seen in zip(names.seen, body.seen, strict=True)
        },
        "updated_channels": None
        if updated is None
        else [channels[u] if type(u) is int else u for u in updated],
    }
    for key, m in zip(names.extra, body.extra, strict=True):
        checkpoint[key] = decoder.decode(m, base)
    return checkpoint


def known_checkpoint(body: Body, names: CheckpointNames) -> KnownCheckpoint:
    return KnownCheckpoint(
        dict(zip(names.channels, body.versions, strict=True)),
        dict(zip(names.values, body.values, strict=True)),
        body.base,
    )


class Write(NamedTuple):
    """A `put_writes` call as stored."""

    no: int
    base: int
    template: int
    time: int
    task_id: bytes
    task_path: str | None
    upsert: bool
    manifests: list[mf.Manifest]


class NewWrites(NamedTuple):
    """A `put_writes` call."""

    checkpoint_id: bytes
    task_id: bytes
    task_path: str
    writes: Sequence[tuple[str, Any]]
    upsert: bool  # they replace the task's earlier ones


def encode_write(encoder: Encoder, batch: Batch, write_no: int, now: int, new: NewWrites) -> bytes:
    """Return the record of a `put_writes` call; `now` is microseconds since 1970."""
    path = new.task_path
    node_path, other = (path, None) if path.startswith(_PULL) else (None, path)
    template = batch.intern("template", mf.pack([node_path, *(channel for channel, _ in new.writes)]))
    manifests = [_encode(encoder, channel, _text_of_error(channel, value)) for channel, value in new.writes]
    time = now - id_time(new.checkpoint_id)
    numbers = write_no - batch.base, template - batch.base
    return mf.pack([FORMAT, *numbers, time, new.task_id, other, new.upsert, *manifests])


def _text_of_error(channel: str, value: Any) -> Any:
    """The text that LangGraph shows of a task's error: it does not expect the exception itself."""
    return repr(value) if channel == ERROR and isinstance(value, BaseException) else value


def open_write(no: int, checkpoint_id: bytes, data: bytes) -> Write:
    f = mf.unpack(data)
    check_format(f, "pending write")
    if type(f[1]) is not int or type(f[2]) is not int:
        raise DecodeError("a pending write's row names no template: its data is damaged")
    base = no - f[1]
    return Write(no, base, base + f[2], f[3] + id_time(checkpoint_id), f[4], f[5], f[6], f[7:])
