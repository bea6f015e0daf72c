"""Rows that claim more than there is are refused before memory is taken, in our own words."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.checkpointer.ids import thread_key
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage import row_format as records
from haive_persistence.codec import compress, decompress
from haive_persistence.db import Database
from haive_persistence.errors import ConfigError, DecodeError, PersistenceError
from tests.builders import store, thread

CONFIG = thread("forged")
BIG = [f"{n}" * 2_000 for n in range(30)]


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """More than this process has now and 2 GiB more is not to be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


Forge = Callable[[Callable[[records.Body], records.Body]], None]


@pytest.fixture
def forge(database: Database, admin: psycopg.Connection[Any]) -> Forge:
    """Stores a thread and changes its checkpoint's row as somebody with SQL may."""

    def change(forged: Callable[[records.Body], records.Body]) -> None:
        store(Checkpointer(database), {"big": BIG}, CONFIG)
        key = {"key": thread_key(database.tenant, "forged")}
        row = admin.execute("SELECT body FROM haive.checkpoint WHERE thread_key = %(key)s", key).fetchone()
        assert row is not None
        body = compress(forged(records.open_body(decompress(row[0]))).pack(), None)
        admin.execute(
            "UPDATE haive.checkpoint SET body = %(body)s WHERE thread_key = %(key)s", {**key, "body": body}
        )

    return change


def value(manifest: Any) -> Callable[[records.Body], records.Body]:
    return lambda body: body._replace(values=[manifest])


def repeated(body: records.Body) -> records.Body:
    """Names the same pieces again and again."""
    ((_, items, *_),) = body.values
    start, count, *_ = items
    return body._replace(values=[[mf.LIST, [start, count, *[-count, count] * 40_000]]])


def nested(depth: int) -> Any:
    manifest: Any = [mf.LEAF, 0]
    for _ in range(depth):
        manifest = [mf.SNAPSHOT, manifest]
    return manifest


FORGERIES: dict[str, Callable[[records.Body], records.Body]] = {
    "a range of 2^31": value([mf.LIST, [0, 1 << 31]]),
    "a range of 2^62": value([mf.DICT, [0, 1 << 62]]),
    "a range of -1": value([mf.LIST, [0, -1]]),
    "many ranges": value([mf.LIST, [0, 1 << 22] * 64]),
    "ids of 2^40": value([mf.LIST, [0, 1], [0, 1 << 40]]),
    "repeated pieces": repeated,
    "nested manifests": value(nested(200)),
    "text for numbers": value([mf.LIST, ["a", "b"]]),
    "odd items": value([mf.LIST, [1]]),
    "no items": value([mf.LIST]),
    "an unknown kind": value([99, [1, 2]]),
    "a kind of text": value(["x"]),
    "uuids that are none": value([mf.PACKED, b"\x03", b"x", 7]),
    "a template of nothing": lambda body: body._replace(template_offset=1 << 40),
    "a template of text": lambda body: body._replace(template_offset="x"),
    "no values": lambda body: body._replace(values=7),
    "odd metadata": lambda body: body._replace(metadata=[["x"], 3]),
    "an odd time": lambda body: body._replace(ts=1 << 62),
    "an odd namespace": lambda body: body._replace(packed_ns=[1, 2]),
    "odd versions": lambda body: body._replace(versions=[["x"], {}, 3]),
    "an odd base": lambda body: body._replace(base=1 << 63),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_row_is_an_error_of_ours(name: str, forge: Forge, database: Database) -> None:
    forge(FORGERIES[name])
    with pytest.raises(PersistenceError):
        Checkpointer(database).get_tuple(CONFIG)
    with pytest.raises(PersistenceError):
        list(Checkpointer(database).list(CONFIG))


def test_an_honest_list_may_repeat_large_elements(database: Database) -> None:
    saver = Checkpointer(database)
    store(saver, {"big": BIG * 50}, CONFIG)
    for reader in (saver, Checkpointer(database)):
        found = reader.get_tuple(CONFIG)
        assert found is not None
        assert found.checkpoint["channel_values"]["big"] == BIG * 50


def test_what_a_read_may_take_is_a_setting(database: Database) -> None:
    store(Checkpointer(database), {"big": BIG}, CONFIG)
    small = Checkpointer(database, config=CheckpointConfig(max_read_bytes=10_000))
    with pytest.raises(DecodeError, match="max_read_bytes"):
        small.get_tuple(CONFIG)
    assert Checkpointer(database, config=CheckpointConfig(max_read_bytes=200_000)).get_tuple(CONFIG)
    with pytest.raises(ConfigError, match="max_read_bytes"):
        CheckpointConfig(max_read_bytes=0)
