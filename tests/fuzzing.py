"""Feeds damaged and forged bytes to every decoder, for a while:  python -m tests.fuzzing SECONDS [SEED]

Seeds are what this package writes. They are changed as bytes and as the values that they hold, objects of any
loaded class among them. Nothing may happen but a value or an error of ours: no import, no file, no process, no
socket, no code; and memory and time within limits. The first input that breaks a rule is printed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import signal
import sys
import time
import traceback
import uuid
import warnings
import zoneinfo
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import langchain_core.messages as lc
import numpy as np
import ormsgpack
from langgraph.types import Command, Interrupt, Send

from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.checkpointer.storage.encoder import Encoder
from haive_persistence.checkpointer.storage.piece_index import Batch, ThreadLog
from haive_persistence.checkpointer.thread_reader import StaleRead, StoredCheckpoint, ThreadReader
from haive_persistence.codec import Codec, Keyring, SafeSerializer, Sealer, context, msgpack_guard
from haive_persistence.codec.compress import compress, decompress_all
from haive_persistence.documents.items import ItemCodec
from haive_persistence.documents.namespaces import from_text
from haive_persistence.errors import PersistenceError
from haive_persistence.keys import Sealing, TenantKeys
from tests.codec import sample_types as t

SECONDS_EACH = 10
LIMIT = 64 << 20
KEY = bytes(32)
AAD = context("t", "piece", 1)
THREAD, ID = uuid.UUID(int=1), uuid.UUID(int=2).bytes
PLAIN = Codec(max_read_bytes=LIMIT)
SEALED = Codec(sealer=Sealer({1: KEY}), max_read_bytes=LIMIT)
SERDE, STRICT = SafeSerializer(), SafeSerializer(allowed_msgpack_modules=None)
RING = Keyring(KEY)

VALUES: list[Any] = [
    [
        lc.HumanMessage("hello", id="1"),
        lc.AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c"}]),
    ],
    lc.ToolMessage("r", tool_call_id="c", artifact={"a": (1, OrderedDict(b=1))}),
    {"a": t.Person(name="x", address=t.Address(street="s")), "b": [t.Leaf(1), t.Colour.RED, t.Pair(1, 2)]},
    [Send("n", {"a": 1}), Command(goto="x"), Interrupt(1, id="i"), {1, 2}, {(1, t.Level.LOW): 2**70}],
    ["\ud800", 1.5, b"bytes", None, {"deep": {"er": [[[1]]]}}, ValueError("x"), deque([1], maxlen=2)],
    [np.arange(6).reshape(2, 3), np.float32(1), t.private(1), t.Table({"a": t.Text("x")}), t.MyMessage("m")],
    [f"{n}" * 600 for n in range(9)] * 3,
    {f"k{n}": ["x" * 300, n] for n in range(9)},
]
NAMES = [
    *(
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "bytes"),
        ("builtins", "tuple"),
        ("re", "compile"),
    ),
    *(("zoneinfo", "ZoneInfo"), ("collections", "defaultdict"), ("collections", "OrderedDict")),
    *(("haive_persistence.config", "PersistenceConfig"), ("decimal", "Decimal"), ("uuid", "UUID")),
]
ODD: list[Any] = [
    *(0, 1, -1, 2**31, 2**32, 2**62, -(2**63), 2**64 - 1, 1e308, float("nan"), True, None),
    *("", "a", "\0", "x" * 300, "9" * 5000, b"", b"\x00" * 40, [], {}, [[[]]], {"a": 1}, {1: 2}),
]


class Ext:
    """An extension, unread."""

    def __init__(self, tag: int, data: bytes) -> None:
        self.tag, self.data = tag, data


def pack(value: Any) -> bytes:
    def default(ext: Ext) -> Any:
        return ormsgpack.Ext(ext.tag, ext.data)

    return ormsgpack.packb(value, default=default, option=ormsgpack.OPT_NON_STR_KEYS)


def unpack(data: bytes) -> Any:
    if msgpack_guard.MUST_CHECK:
        msgpack_guard.check_counts(data)
    return ormsgpack.unpackb(data, ext_hook=Ext, option=ormsgpack.OPT_NON_STR_KEYS)


class Mutator:
    """Makes new inputs of old ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = [*NAMES, *self._loaded()]

    @staticmethod
    def _loaded() -> list[tuple[str, str]]:
        """Everything that stored bytes could name in this process."""
        modules = [
            (name, module) for name, module in sys.modules.items() if not name.startswith("tests.fuzzing")
        ]
        return [(name, key) for name, module in modules for key in list(getattr(module, "__dict__", {}))]

    def __call__(self, data: bytes, *, is_msgpack: bool) -> bytes:
        if is_msgpack and self.random.random() < 0.6:
            try:
                return pack(self.tree(unpack(data), 0))
            except (ValueError, TypeError, RecursionError):
                pass
        return self.bytes(data)

    def bytes(self, data: bytes) -> bytes:
        changed, choose = bytearray(data), self.random
        for _ in range(choose.randint(1, 5)):
            at = choose.randrange(len(changed) + 1)
            match choose.randrange(5):
                case 0 if at < len(changed):
                    changed[at] ^= 1 << choose.randrange(8)
                case 1 if at < len(changed):
                    changed[at] = choose.randrange(256)
                case 2:
                    del changed[at : at + choose.randint(1, 30)]
                case 3:
                    changed[at:at] = choose.randbytes(choose.randint(1, 8))
                case _:
                    changed[at:at] = changed[at : at + choose.randint(1, 60)]
        return bytes(changed)

    def tree(self, value: Any, depth: int) -> Any:
        """The value with some of its parts changed."""
        choose = self.random
        if choose.random() < 0.08:
            return self.odd(value)
        if isinstance(value, list) and value:
            parts = [self.tree(part, depth + 1) if choose.random() < 0.7 else part for part in value]
            if choose.random() < 0.1:
                parts.insert(choose.randrange(len(parts) + 1), choose.choice(parts))
            if choose.random() < 0.1:
                del parts[choose.randrange(len(parts))]
            return parts
        if isinstance(value, dict):
            return {key: self.tree(part, depth + 1) for key, part in value.items() if choose.random() > 0.03}
        if isinstance(value, Ext):
            return self.extension(value, depth)
        if type(value) is int and choose.random() < 0.3:
            return value + choose.choice([1, -1, 1 << 20, 1 << 40, -(1 << 30)])
        return value

    def extension(self, value: Any, depth: int) -> Any:
        code, data = value.tag, value.data
        if self.random.random() < 0.15:
            code = self.random.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 77])
        try:
            return Ext(code, pack(self.tree(unpack(data), depth + 1)))
        except (ValueError, TypeError, RecursionError):
            return Ext(code, self.bytes(data))

    def odd(self, value: Any) -> Any:
        choose = self.random
        if choose.random() < 0.5:
            return choose.choice(ODD)
        module, name = choose.choice(self.names if choose.random() < 0.7 else NAMES)
        parts = [module, name, choose.choice([value, *ODD, {"x": value}])]
        more: list[Any] = [
            [],
            ["model_construct"],
            ["model_validate_json"],
            [{"qualname": name}],
            ["fromisoformat"],
        ]
        return Ext(choose.randrange(8), pack([*parts, *choose.choice(more)]))


# --- decoders ---------------------------------------------------------------------------------


class Rows:
    """A thread's rows, and a reader of them without a database."""

    def __init__(self) -> None:
        log = ThreadLog(1)
        self.pieces: dict[int, bytes] = {}
        batch = Batch(log)
        encoder = Encoder(PLAIN, batch)
        manifests = [encoder.encode(value) for value in VALUES]
        fragments = encoder.encode([f"{n % 7}" * 600 + str(n * n % 11) for n in range(300)])
        names = [f"c{n}" for n in range(len(manifests))]
        template = batch.intern("template", mf.pack([names, [], ["m"], names, []]))
        write = batch.intern("template", mf.pack([None, "c0", "c1"]))
        self.pieces = dict(batch.send)
        self.templates = [self.pieces[template], self.pieces[write]]
        self.sequences = [mf.encode_sequence([1, 2, 9, 10, 11]), mf.encode_sequence(list(range(0, 900, 7)))]
        body = [1, batch.base, template - batch.base, 4, 0, list(range(len(names))), [], None, [3]]
        self.bodies = [
            mf.pack([*body, chosen, [], None, ""]) for chosen in (manifests, [fragments] * len(names))
        ]
        self.writes = [mf.pack([1, 5 - batch.base, write - batch.base, 0, b"t", None, False, *manifests[:2]])]

    def reader(self) -> ThreadReader:
        reader = ThreadReader(ThreadLog(1), Sealing(PLAIN, "t", TenantKeys()), THREAD, {})
        reader.pieces.update(self.pieces)
        return reader

    def read_body(self, data: bytes) -> None:
        reader = self.reader()
        body = reader.open_body(1, ID, None, compress(data, None))
        self._read(reader, StoredCheckpoint(THREAD, "t", 1, ID, None, body, []))

    def read_write(self, data: bytes) -> None:
        reader = self.reader()
        write = reader.open_write(1, ID, 5, compress(data, None))
        body = records.open_body(self.bodies[0])
        self._read(reader, StoredCheckpoint(THREAD, "t", 1, ID, None, body, [write]))

    def _read(self, reader: ThreadReader, stored: StoredCheckpoint) -> None:
        if not reader.needed([stored]):
            reader.metadata(stored.body)
            reader.checkpoint_tuple(stored)

    def read_sequence(self, data: bytes) -> None:
        self.reader().open_sequence(7, compress(data, None))

    def read_template(self, data: bytes) -> None:
        reader = self.reader()
        body = records.open_body(self.bodies[0])
        reader.pieces[body.template] = data
        self._read(reader, StoredCheckpoint(THREAD, "t", 1, ID, None, body, []))


def read_item(data: bytes) -> None:
    from_text(data.decode("utf-8", "replace"))
    for columns in ([{"a": 1, "b": {"c": 2, "dd": 3}}, None, data, None], [None, data, None, None]):
        with contextlib.suppress(PersistenceError):
            ItemCodec().decode(("a", "b"), columns)


Target = tuple[Callable[[bytes], Any], list[bytes], bool]


def targets() -> dict[str, Target]:
    rows = Rows()
    msgpack = [SERDE.dumps_typed(value)[1] for value in VALUES]
    stored = [codec.encode(value, AAD) for value in VALUES for codec in (PLAIN, SEALED)]
    lc_path = ["langchain", "schema", "messages", "HumanMessage"]
    old = [
        {"lc": 2, "type": "constructor", "id": ["uuid", "UUID"], "kwargs": {"hex": "0" * 32}},
        {"lc": 1, "type": "constructor", "id": lc_path, "kwargs": {"content": "x", "type": "human"}},
        {
            "lc": 2,
            "type": "constructor",
            "id": ["datetime", "datetime"],
            "method": "fromisoformat",
            "args": ["2024-01-01"],
        },
    ]
    return {
        "msgpack": (lambda data: SERDE.loads_typed(("msgpack", data)), msgpack, True),
        "strict msgpack": (lambda data: STRICT.loads_typed(("msgpack", data)), msgpack, True),
        "stored again": (
            lambda data: SERDE.dumps_typed(STRICT.loads_typed(("msgpack", data))),
            msgpack,
            True,
        ),
        "legacy JSON": (lambda data: SERDE.loads_typed(("json", data)), [json.dumps(old).encode()], False),
        "tags": (PLAIN.load, [PLAIN.dump(value) for value in VALUES], False),
        "frames": (lambda data: decompress_all([data] * 9, max_size=LIMIT), stored[::2], False),
        "stored": (lambda data: PLAIN.decode(data, AAD), stored[::2], False),
        "sealed": (lambda data: SEALED.decode(data, AAD), stored[1::2], False),
        "wrapped keys": (lambda data: RING.unwrap(data, "t", 1), [RING.wrap(KEY, "t", 1)], False),
        "bodies": (rows.read_body, rows.bodies, True),
        "writes": (rows.read_write, rows.writes, True),
        "sequences": (rows.read_sequence, rows.sequences, True),
        "templates": (rows.read_template, rows.templates, True),
        "store items": (read_item, [b'{"a": {"b": [1, 2.5, "x"]}}', b'["a", ["b", "c"]]', b"a\x1fb"], False),
    }


# --- rules ------------------------------------------------------------------------------------

_WATCHED = ("import", "open", "exec", "os.", "subprocess.", "socket.", "ctypes.", "shutil.")
_events: list[tuple[str, Any]] | None = None


def _watch(event: str, args: Any) -> None:
    if _events is not None and event.startswith(_WATCHED) and not _is_zone(event, args):
        _events.append((event, args))


def _is_zone(event: str, args: Any) -> bool:
    """Time zones are read from the system's files."""
    return event == "open" and str(args[0]).startswith(zoneinfo.TZPATH)


class TooSlow(BaseException):
    pass


def _stop(*_: Any) -> None:
    raise TooSlow


def broken_rule(read: Callable[[bytes], Any], data: bytes) -> str | None:
    """What happened that must not, or None."""
    global _events
    modules, calls = len(sys.modules), len(t.CALLS)
    _events = []
    signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
    try:
        read(data)
    except (PersistenceError, StaleRead):
        pass
    except BaseException:
        _events, seen = None, _events
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen, _events = _events or [], None
    if seen or len(sys.modules) != modules or len(t.CALLS) != calls:
        return f"events {seen[:3]}, modules {len(sys.modules) - modules}, calls {t.CALLS[calls:]}"
    return None


def fuzz(seconds: float, seed: int) -> int:
    """Runs all targets in turn. Returns how many inputs were read; exits with 1 at the first that breaks a rule."""
    everything = targets()
    mutate = Mutator(seed)
    for read, seeds, _ in everything.values():  # what is loaded late is loaded now
        for data in seeds:
            if (rule := broken_rule(read, data)) and "Error" in rule:
                raise SystemExit(f"a seed is not read:\n{rule}")
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), resource.RLIM_INFINITY))
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (read, seeds, is_msgpack) in everything.items():
            for _ in range(50):
                data = mutate.random.choice(seeds)
                for _ in range(mutate.random.randint(1, 3)):
                    data = mutate(data, is_msgpack=is_msgpack)
                if rule := broken_rule(read, data):
                    raise SystemExit(f"{name} of {data!r} (seed {seed}):\n{rule}")
                count += 1
    return count


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _stop)
    sys.addaudithook(_watch)
    given = int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(os.urandom(4), "big")
    print(fuzz(float(sys.argv[1]), given), "inputs, seed", given)
