"""Data keys: made by the first write, one configuration for a database, errors that say what to do."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from haive_persistence import Checkpointer, EncryptionConfig, PersistenceConfig, PostgresStore
from haive_persistence.checkpointer import CheckpointConfig
from haive_persistence.db import Database
from haive_persistence.errors import ConfigError, TamperedError, WrongKeyError
from tests.checkpointer.conftest import store, thread

KEY, OTHER = secrets.token_bytes(32), secrets.token_bytes(32)


def saver_with(database: Database, key: bytes, *older: bytes) -> Checkpointer:
    """A saver of another process."""
    encryption = EncryptionConfig(encryption_key=key, older_encryption_keys=older)
    return Checkpointer(database.with_encryption(encryption))


def count_keys(dsn: str, tenant: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT count(*) FROM haive.data_key WHERE tenant_id = %s", (tenant,)).fetchone()
    assert row is not None
    return int(row[0])


def test_reading_makes_no_key(database: Database, dsn: str) -> None:
    saver = saver_with(database, KEY)
    assert saver.get_tuple(thread()) is None
    assert list(saver.list(None)) == []
    assert saver.get_delta_channel_history(config=thread(), channels=["a"]) == {"a": {"writes": []}}
    saver.delete_thread("t")
    saver.prune(["t"])
    saver.delete_for_runs(["run"])
    assert count_keys(dsn, database.tenant) == 0
    # a key that was only read with does not lock out the one that is written with
    store(saver_with(database, OTHER), {"a": 1})
    assert count_keys(dsn, database.tenant) == 1
    assert saver_with(database, OTHER).get_tuple(thread()) is not None


def test_a_process_that_has_read_learns_of_the_first_key(database: Database) -> None:
    reading = saver_with(database, KEY)
    assert reading.get_tuple(thread()) is None
    config = store(saver_with(database, KEY), {"a": 1})
    assert reading.get_tuple(thread()) is not None
    store(reading, {"a": 2}, config)
    found = saver_with(database, KEY).get_tuple(thread())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": 2}


def test_a_wrong_key_names_the_setting_that_mends_it(database: Database) -> None:
    store(saver_with(database, KEY), {"a": 1})
    with pytest.raises(WrongKeyError, match="older_encryption_keys"):
        saver_with(database, OTHER).get_tuple(thread())
    with pytest.raises(WrongKeyError, match="older_encryption_keys"):
        store(saver_with(database, OTHER), {"a": 2})
    assert saver_with(database, OTHER, KEY).get_tuple(thread()) is not None


def test_one_configuration_serves_the_whole_database(connected: Callable[..., Database], tenant: str) -> None:
    encryption = EncryptionConfig(encryption_key=KEY)
    database = connected(tenant=tenant, encryption=encryption)
    store(Checkpointer(database), {"a": 1})
    with pytest.raises(WrongKeyError):
        Checkpointer(connected(tenant=tenant)).get_tuple(thread())
    same = CheckpointConfig(encryption_key=KEY)  # says it again: no contradiction
    assert Checkpointer(database, config=same).get_tuple(thread()) is not None
    with pytest.raises(ConfigError, match="two encryption_keys"):
        Checkpointer(database, config=CheckpointConfig(encryption_key=OTHER))


def test_the_short_form_ends_in_the_savers_database(database: Database) -> None:
    saver = Checkpointer(database, config=CheckpointConfig(encryption_key=KEY))
    assert saver.database.encryption == EncryptionConfig(encryption_key=KEY)
    assert saver.for_tenant("other").database.encryption == saver.database.encryption
    with pytest.raises(ConfigError, match="plaintext beside a sealed checkpointer"):
        Checkpointer(PostgresStore(database), config=CheckpointConfig(encryption_key=KEY))


def test_views_of_a_tenant_load_its_keys_once(database: Database) -> None:
    saver = saver_with(database, KEY)
    store(saver.for_tenant(f"{database.tenant}-a"), {"a": 1})
    saver.for_tenant(f"{database.tenant}-a").get_tuple(thread("missing"))
    trips: list[Any] = []
    database.hooks.append(trips.append)
    for _ in range(3):
        saver.for_tenant(f"{database.tenant}-a").get_tuple(thread("missing"))
    database.hooks.clear()
    assert len(trips) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"encryption_key": None},
        {"encryption_key": ""},
        {"encryption_key": 7},
        {"encryption_key": "short"},
        {"encryption_key": KEY, "older_encryption_keys": "one text is no sequence"},
        {"encryption_key": KEY, "older_encryption_keys": [None]},
    ],
)
def test_wrong_keys_are_said_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EncryptionConfig(**wrong)


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PersistenceConfig().encryption is None
    monkeypatch.setenv("HAIVE_ENCRYPTION_KEY", KEY.hex())
    monkeypatch.setenv("HAIVE_OLDER_ENCRYPTION_KEYS", "a passphrase of old; another passphrase")
    encryption = PersistenceConfig().encryption
    assert encryption == EncryptionConfig(
        encryption_key=KEY.hex(), older_encryption_keys=("a passphrase of old", "another passphrase")
    )
    assert PersistenceConfig(encryption=None).encryption is None


def test_keys_are_shown_nowhere() -> None:
    config = PersistenceConfig(
        encryption=EncryptionConfig(encryption_key=KEY.hex(), older_encryption_keys=(OTHER,))
    )
    for text in (repr(config), str(config), repr(config.encryption)):
        assert KEY.hex() not in text
        assert repr(OTHER) not in text
    with pytest.raises(ConfigError, match="give an EncryptionConfig"):
        PersistenceConfig(encryption=KEY)  # type: ignore[arg-type]


def test_a_first_data_key_that_was_deleted_is_noticed(database: Database, dsn: str) -> None:
    """Under the second one's hashes nothing that is stored would be found, without an error."""
    items = PostgresStore(database.with_encryption(EncryptionConfig(encryption_key=KEY)))
    items.put(("a",), "k", {"b": 1})
    saver_with(database, KEY).new_data_key()
    with psycopg.connect(dsn) as conn:
        conn.execute("DELETE FROM haive.data_key WHERE tenant_id = %s AND key_no = 1", (database.tenant,))
    other = PostgresStore(database.with_encryption(EncryptionConfig(encryption_key=KEY)))
    for use in (lambda: other.get(("a",), "k"), lambda: other.put(("a",), "k", {"b": 2})):
        with pytest.raises(TamperedError, match="data key"):
            use()
