"""The records of the checkpointer's tables: what a checkpoint's `head` and a write's `payload` hold.

Both are msgpack arrays and begin with the number of their format; a reader knows every format
up to its own and says so when it meets a newer one.

    head     [1, base, template, v, ts, versions, seen, updated, metadata, values, extra, parent, ns]
    payload  [1, base, template, time, task_id, task_path, upsert, manifest, manifest, …]

`base` is the number the manifests count from (in a write, how far below the row's own number that
is). `template` is the piece that holds the names (of channels, nodes and metadata keys), which
hardly change from one checkpoint of a thread to the next; `versions`, `metadata`, … are the values
in the order of those names. Times are microseconds since the time in the checkpoint's UUID version 6,
or the whole ISO text (in a write, microseconds since 1970) where that would not say it exactly.
`parent` is the parent's id when the codec seals, so that nobody can hang a checkpoint elsewhere;
else None. `ns` is the namespace's name; where UUIDs are in it, in the parts of `pack_uuids`. A write's
template begins with its `task_path` if that is a node's, the same in every step, and else with None;
`task_path` is then the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from haive_persistence.checkpointer.ids import decode_id, pack_uuids, unpack_uuids
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.decoder import Decoder
from haive_persistence.checkpointer.storage.encoder import Encoder
from haive_persistence.checkpointer.storage.piece_index import Batch, KnownHead
from haive_persistence.errors import DecodeError, EncodeError

FORMAT = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
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
    if type(ts) is str and (made := id_time(checkpoint_id)):
        try:
            at = datetime.fromisoformat(ts)
        except ValueError:
            return ts
        if at.tzinfo is not None and at.utcoffset() == timedelta(0) and at.isoformat() == ts:
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


class Head(NamedTuple):
    """A checkpoint's record, unpacked; `names` and manifests still encoded."""

    base: int
    template: int
    fields: list[Any]

    @property
    def ns(self) -> str:
        ns: str | list[bytes] = self.fields[12]
        return ns if isinstance(ns, str) else unpack_uuids(ns).decode()

    @property
    def values(self) -> list[mf.Manifest]:
        return list(self.fields[9])

    def manifests(self) -> list[mf.Manifest]:
        """Every manifest of the head."""
        f = self.fields
        return [*f[8], *f[9], *f[10]]


def encode_head(
    encoder: Encoder,
    batch: Batch,
    checkpoint: Mapping[str, Any],
    metadata: Mapping[str, Any],
    reuse: KnownHead | None,
    new_versions: Mapping[str, Any],
    checkpoint_id: bytes,
    parent: bytes | None,
    ns: str,
) -> tuple[bytes, KnownHead]:
    """A checkpoint's record. Channels whose version is the parent's keep the parent's manifests."""
    versions: Mapping[str, Any] = checkpoint["channel_versions"]
    seen: Mapping[str, Mapping[str, Any]] = checkpoint["versions_seen"]
    values: Mapping[str, Any] = checkpoint["channel_values"]
    extra = {k: v for k, v in checkpoint.items() if k not in _KNOWN}
    manifests = {k: _manifest(encoder, k, v, versions, new_versions, reuse) for k, v in values.items()}
    if reuse is not None:
        for k in missing_values(checkpoint, new_versions):
            if k in reuse.manifests and reuse.versions.get(k) == versions[k]:
                manifests[k] = encoder.reuse(reuse.manifests[k], reuse.base)
    names = [
        list(versions),
        [[node, list(v)] for node, v in seen.items()],
        list(metadata),
        list(manifests),
        list(extra),
    ]
    template = batch.intern("template", mf.pack(names))
    at = {name: i for i, name in enumerate(versions)}
    updated = checkpoint.get("updated_channels")
    record = [
        FORMAT,
        batch.base,
        template - batch.base,
        checkpoint["v"],
        encode_time(checkpoint["ts"], checkpoint_id),
        list(versions.values()),
        [list(v.values()) for v in seen.values()],
        None if updated is None else [at.get(name, name) for name in updated],
        [encoder.encode(v, 64) for v in metadata.values()],
        list(manifests.values()),
        [encoder.encode(v) for v in extra.values()],
        parent,
        _packed(ns),
    ]
    return mf.pack(record), KnownHead(dict(versions), manifests, batch.base)


def _packed(ns: str) -> str | list[bytes]:
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
    encoder: Encoder,
    channel: str,
    value: Any,
    versions: Mapping[str, Any],
    new_versions: Mapping[str, Any],
    reuse: KnownHead | None,
) -> mf.Manifest:
    if (
        reuse is not None
        and channel not in new_versions
        and channel in reuse.manifests
        and reuse.versions.get(channel) == versions.get(channel)
    ):
        return encoder.reuse(reuse.manifests[channel], reuse.base)
    return _encode(encoder, channel, value)


def _encode(encoder: Encoder, channel: str, value: Any) -> mf.Manifest:
    try:
        return encoder.encode(value)
    except EncodeError as error:
        raise EncodeError(f"channel {channel!r}: {error}") from error


def open_head(data: bytes) -> Head:
    fields = mf.unpack(data)
    check_format(fields, "checkpoint")
    return Head(fields[1], fields[1] + fields[2], fields)


def with_parent(head: Head, parent: bytes) -> bytes:
    """The record of a checkpoint that is hung below another one."""
    fields = head.fields.copy()
    fields[11] = parent
    return mf.pack(fields)


def metadata_value(head: Head, names: list[Any], key: str, decoder: Decoder) -> Any:
    """One metadata value of a head, or None."""
    keys = names[2]
    return decoder.decode(head.fields[8][keys.index(key)], head.base) if key in keys else None


def decode_metadata(head: Head, names: list[Any], decoder: Decoder) -> dict[str, Any]:
    return {k: decoder.decode(m, head.base) for k, m in zip(names[2], head.fields[8], strict=True)}


def decode_checkpoint(head: Head, names: list[Any], checkpoint_id: bytes, decoder: Decoder) -> dict[str, Any]:
    """The checkpoint as it was put, with values of its own."""
    f = head.fields
    channels = names[0]
    updated = f[7]
    checkpoint = {
        "v": f[3],
        "ts": decode_time(f[4], checkpoint_id),
        "id": decode_id(checkpoint_id),
        "channel_values": {k: decoder.decode(m, head.base) for k, m in zip(names[3], f[9], strict=True)},
        "channel_versions": dict(zip(channels, f[5], strict=True)),
        "versions_seen": {
            node: dict(zip(keys, seen, strict=True))
            for (node, keys), seen in zip(names[1], f[6], strict=True)
        },
        "updated_channels": None
        if updated is None
        else [channels[u] if type(u) is int else u for u in updated],
    }
    for key, m in zip(names[4], f[10], strict=True):
        checkpoint[key] = decoder.decode(m, head.base)
    return checkpoint


def known_head(head: Head, names: list[Any]) -> KnownHead:
    return KnownHead(
        dict(zip(names[0], head.fields[5], strict=True)),
        dict(zip(names[3], head.fields[9], strict=True)),
        head.base,
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


def encode_write(
    encoder: Encoder,
    batch: Batch,
    no: int,
    checkpoint_id: bytes,
    now: int,
    task: tuple[bytes, str],
    writes: Sequence[tuple[str, Any]],
    upsert: bool,
) -> bytes:
    """The record of a `put_writes` call; `now` is microseconds since 1970."""
    task_id, path = task
    of_node, other = (path, None) if path.startswith(_PULL) else (None, path)
    template = batch.intern("template", mf.pack([of_node, *(channel for channel, _ in writes)]))
    manifests = [_encode(encoder, channel, value) for channel, value in writes]
    time = now - id_time(checkpoint_id)
    numbers = no - batch.base, template - batch.base
    return mf.pack([FORMAT, *numbers, time, task_id, other, upsert, *manifests])


def open_write(no: int, checkpoint_id: bytes, data: bytes) -> Write:
    f = mf.unpack(data)
    check_format(f, "pending write")
    base = no - f[1]
    return Write(no, base, base + f[2], f[3] + id_time(checkpoint_id), f[4], f[5], f[6], f[7:])
