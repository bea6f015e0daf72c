"""Every setting has its default, its environment variable and its effect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database, Query, run_sync
from haive_persistence.errors import ConfigError, InvalidIdentifierError
from tests.db.helpers import ONE

SESSION = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "1min",
    "work_mem": "7MB",
    "maintenance_work_mem": "33MB",
    "effective_cache_size": "3GB",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in fields(PersistenceConfig):
        monkeypatch.delenv(f"HAIVE_{field.name.upper()}", raising=False)


def test_seed_reads_as_printed() -> None:
    config = PersistenceConfig(
        connection_string=None,
        schema="haive_production",
        pool_size=20,
        max_overflow=10,
        pool_timeout=30,
        echo_sql=False,
        statement_timeout="30s",
        lock_timeout="10s",
        idle_in_transaction_session_timeout="60s",
        work_mem="256MB",
        maintenance_work_mem="512MB",
        effective_cache_size="4GB",
    )
    assert config.schema == "haive_production"
    with pytest.raises(FrozenInstanceError):
        config.schema = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        PersistenceConfig("postgresql://")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("connection_string", "postgresql://h/d", "postgresql://h/d"),
        ("embedded", "yes", True),
        ("schema", "other", "other"),
        ("tenant", "me", "me"),
        ("pool_size", "3", 3),
        ("max_overflow", "0", 0),
        ("pool_timeout", "2.5", 2.5),
        ("pooler", "transaction", "transaction"),
        ("prepare_threshold", "5", 5),
        ("prepare_threshold", "never", None),
        ("prepare_threshold", "auto", "auto"),
        ("echo_sql", "true", True),
        ("echo_sql", "0", False),
        ("statement_timeout", "3s", "3s"),
        ("lock_timeout", "3s", "3s"),
        ("idle_in_transaction_session_timeout", "3s", "3s"),
        ("work_mem", "3MB", "3MB"),
        ("maintenance_work_mem", "3MB", "3MB"),
        ("effective_cache_size", "3MB", "3MB"),
        ("data_dir", "/there", "/there"),
        ("embedded_settings", "a=1;b = two ", {"a": "1", "b": "two"}),
    ],
)
def test_environment(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    monkeypatch.setenv(f"HAIVE_{name.upper()}", text)
    assert getattr(PersistenceConfig(), name) == value


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = {case[0] for case in test_environment.pytestmark[0].args[1]}
    assert tested | {"encryption"} == {field.name for field in fields(PersistenceConfig)}


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAIVE_CONNECTION_STRING", "postgresql://elsewhere")
    monkeypatch.setenv("HAIVE_POOL_SIZE", "3")
    assert PersistenceConfig(connection_string=None, pool_size=4).connection_string is None
    assert Database("postgresql://here").config.connection_string == "postgresql://here"
    assert Database().config.connection_string == "postgresql://elsewhere"


@pytest.mark.parametrize(
    ("name", "text"), [("POOL_SIZE", "many"), ("ECHO_SQL", "perhaps"), ("PREPARE_THRESHOLD", "x")]
)
def test_nonsense_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"HAIVE_{name}", text)
    with pytest.raises(ConfigError, match=f"HAIVE_{name}='{text}'"):
        PersistenceConfig()


@pytest.mark.parametrize(
    "settings",
    [
        {"schema": ""},
        {"schema": 'x"; DROP'},
        {"schema": "pg_mine"},
        {"schema": "x" * 41},
        {"schema": "1st"},
        {"pool_size": 0},
        {"max_overflow": -1},
        {"pool_timeout": 0},
        {"pooler": "statement"},
        {"prepare_threshold": -1},
        {"prepare_threshold": "sometimes"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PersistenceConfig(**settings)


@pytest.mark.parametrize(
    "secret",
    [
        "postgresql://me:s3cr:et@host/db",
        "postgres://me:s3cret@host:5432/db?sslmode=require",
        "host=h password=s3cret dbname=d",
        "host=h password = 's3cret \\' word' dbname=d",
        "postgresql://host/db?user=me&password=s3cret&x=1",
        "postgresql://me:s3cr@t/s3cret@host/db",
        "postgresql://me@corp:s3cret@host/db",
        "postgresql+psycopg://me:s3cret@host/db",
        "postgresql://host/db?user=me&pass%77ord=s3cret",
        "postgresql://host/db?PASSWORD=s3cret",
        "host=h password=a\\ s3cret dbname=d",
        "host=h password=a&s3cret dbname=d",
        "host=h password = 'a\n s3cret' dbname=d",
        "host=h password='a s3cret",
    ],
)
def test_repr_shows_no_password(secret: str) -> None:
    shown = repr(PersistenceConfig(connection_string=secret))
    assert "s3cr" not in shown
    assert "word'" not in shown
    assert "***" in shown
    assert "schema='haive'" in shown


# -- effects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooler", ["session", "transaction"])
@pytest.mark.parametrize("name", SESSION)
def test_session_settings_hold_for_every_statement(
    connected: Callable[..., Database], pooler: str, name: str
) -> None:
    database = connected(pooler=pooler, **{name: SESSION[name]})
    show = Query(f"SELECT current_setting('{name}')")
    assert run_sync(database.blocking.fetch_one(show)) == (SESSION[name],)

    async def in_transaction() -> object:
        async with database.blocking.transaction() as tx:
            return await tx.fetch_one(show)

    assert run_sync(in_transaction()) == (SESSION[name],)


def test_numbers_are_seconds(connected: Callable[..., Database]) -> None:
    database = connected(statement_timeout=1.5, lock_timeout=2)
    show = Query("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
    assert run_sync(database.blocking.fetch_one(show)) == ("1500ms", "2s")


def test_settings_left_out_are_left_alone(connected: Callable[..., Database]) -> None:
    show = Query("SELECT count(*) FROM pg_settings WHERE source = 'session' AND name = ANY(%(names)s)")
    assert run_sync(connected().blocking.fetch_one(show, {"names": list(SESSION)})) == (0,)


def test_echo_sql_logs_statements_without_parameters(
    connected: Callable[..., Database], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "haive_persistence.sql"):
        run_sync(connected(echo_sql=True).blocking.fetch_one(ONE, {"a": "secret", "b": 1}))
        run_sync(connected().blocking.fetch_one(ONE, {"a": "x", "b": 1}))
    (record,) = caplog.records
    assert ONE in record.message
    assert "1 rows" in record.message
    assert "secret" not in record.message


def test_tenant_is_the_default_of_the_database(connected: Callable[..., Database]) -> None:
    database = connected(tenant="from the config")
    assert database.tenant == database.blocking.tenant == database.asynchronous.tenant == "from the config"


def test_prepared_statements_are_off_behind_a_transaction_pooler_unless_asked_for() -> None:
    assert PersistenceConfig().prepares_after(pooled=False) == 0
    assert PersistenceConfig().prepares_after(pooled=True) is None
    assert PersistenceConfig(prepare_threshold=0).prepares_after(pooled=True) == 0
    assert PersistenceConfig(prepare_threshold=None).prepares_after(pooled=False) is None


def test_a_bare_number_in_a_variable_is_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAIVE_STATEMENT_TIMEOUT", "30")
    monkeypatch.setenv("HAIVE_LOCK_TIMEOUT", "500ms")
    settings = PersistenceConfig().session_settings()
    assert (
        settings["statement_timeout"]
        == PersistenceConfig(statement_timeout=30).session_settings()["statement_timeout"]
    )
    assert settings["lock_timeout"] == "500ms"


def test_a_data_dir_that_is_given_wins_over_a_server_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAIVE_CONNECTION_STRING", "host=elsewhere")
    assert PersistenceConfig(data_dir="/x").connection_string is None
    assert PersistenceConfig(data_dir="").connection_string == "host=elsewhere"
    with pytest.raises(ConfigError, match="not both"):
        PersistenceConfig(data_dir="/x", connection_string="host=here")
    monkeypatch.setenv("HAIVE_DATA_DIR", "/x")
    assert PersistenceConfig().connection_string == "host=elsewhere"


@pytest.mark.parametrize(
    "given",
    [
        {"statement_timeout": float("nan")},
        {"statement_timeout": -1},
        {"lock_timeout": True},
        {"pool_size": "10"},
        {"pool_size": 2.5},
        {"pool_timeout": "30"},
        {"work_mem": 64},
        {"schema": None},
        {"schema": "information_schema"},
        {"echo_sql": "no"},
        {"embedded_settings": None},
        {"embedded_settings": "a=1"},
        {"data_dir": 7},
        {"connection_string": b"host=h"},
        {"connection_string": {"host": "h"}},
        {"embedded": "no"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        PersistenceConfig(**given)


def test_a_short_timeout_is_not_none_at_all() -> None:
    assert PersistenceConfig(statement_timeout=0.0004).session_settings() == {"statement_timeout": "1ms"}


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 0])
def test_a_wait_without_an_end_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="pool_timeout"):
        PersistenceConfig(pool_timeout=seconds)


def test_the_password_of_a_key_is_not_shown() -> None:
    assert "secret" not in repr(PersistenceConfig(connection_string="host=h sslpassword=secret"))


@pytest.mark.parametrize("tenant", [7, None, "", "a\0b", "\ud800", "x" * 256])
def test_a_tenant_that_cannot_be_is_refused(tenant: Any) -> None:
    with pytest.raises(InvalidIdentifierError, match="tenant"):
        PersistenceConfig(tenant=tenant)


@pytest.mark.parametrize("given", [{"connection_string": "host=h"}, 7, b"host=h", ["host=h"]])
def test_database_of_what_is_no_config_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=type(given).__name__):
        Database(given)


def test_embedded_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="embedded"):
        PersistenceConfig(embedded=False)
    assert PersistenceConfig(embedded=False, connection_string="host=h").connection_string == "host=h"
    monkeypatch.setenv("HAIVE_EMBEDDED", "false")
    with pytest.raises(ConfigError, match="embedded"):
        Database(None)
    monkeypatch.setenv("HAIVE_CONNECTION_STRING", "host=h")
    assert Database().config.connection_string == "host=h"


def test_none_is_told_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PersistenceConfig(connection_string=None).embedded_by_none
    assert Database(None).config.embedded_by_none
    assert not PersistenceConfig().embedded_by_none
    assert not Database().config.embedded_by_none
    assert not PersistenceConfig(connection_string=None, data_dir="/there").embedded_by_none
    monkeypatch.setenv("HAIVE_CONNECTION_STRING", "host=h")
    assert Database(None).config.connection_string == "host=h"


def test_database_shows_where_it_is_and_whose() -> None:
    database = Database(PersistenceConfig(connection_string="postgresql://me:s3cret@host/db", schema="mine"))
    shown = repr(database.for_tenant("acme"))
    assert "s3cret" not in shown
    assert "host/db" in shown
    assert "schema='mine'" in shown
    assert "tenant='acme'" in shown


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("POOL_SIZE", "many", "write a whole number"),
        ("MAX_OVERFLOW", "-1", "write a whole number"),
        ("POOL_TIMEOUT", "soon", "write a number of seconds"),
        ("PREPARE_THRESHOLD", "sometimes", "write auto, never, or a whole number"),
        ("ECHO_SQL", "maybe", "write true or false"),
    ],
)
def test_a_variable_that_cannot_be_read_says_what_to_write(
    name: str, text: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"HAIVE_{name}", text)
    with pytest.raises(ConfigError, match=f"HAIVE_{name}='{text}': {advice}"):
        PersistenceConfig()
