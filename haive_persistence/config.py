"""Settings: frozen values, each of which an environment variable may set.

A field that the caller leaves out is taken from `HAIVE_<FIELD>` (upper case), then from its
default; what the caller gives always wins. Nothing is read again after construction.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

from haive_persistence._text import is_utf8
from haive_persistence.errors import ConfigError, InvalidIdentifierError
from haive_persistence.masking import mask_secrets

T = TypeVar("T")

#: Stands for a connection string that was not passed: HAIVE_CONNECTION_STRING, or else the embedded Postgres.
LEFT_OUT = "(left out)"

LONGEST_WAIT_S = 1_000_000

#: The fewest characters of a passphrase.
MIN_PASSPHRASE = 12

Secret = str | bytes

PoolerMode = Literal["auto", "session", "transaction"]

# Quoted wherever it is used; short enough that a role can be named after it (63 bytes).
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_DURATIONS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_SETTINGS = ("work_mem", "maintenance_work_mem", "effective_cache_size")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("write true or false")


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise ValueError("write a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("write a number of seconds") from None


def _threshold(text: str) -> int | Literal["auto"] | None:
    if text.lower() == "auto":
        return "auto"
    if text.lower() in {"never", "none", "off"}:
        return None
    try:
        return _whole(text)
    except ValueError:
        raise ValueError("write auto, never, or a whole number") from None


def _duration(text: str) -> str | float:
    """Of a variable: a bare number is seconds, as in every setting of ours."""
    try:
        return float(text)
    except ValueError:
        return text


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _setting(name: str, default: T, parse: Callable[[str], Any] = str) -> T:
    """A dataclass field that takes its default from the environment, read at construction."""

    def read() -> Any:
        text = os.environ.get(f"HAIVE_{name.upper()}")
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"the environment variable HAIVE_{name.upper()}={text!r}: {error}") from error

    value: T = field(default_factory=read)
    return value


@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """The keys of a database's encryption, the same in every process that uses it.

    Lose the key and the data is lost: nothing in the database opens it. Store it where you store other
    secrets, not in the database.

    Raises ConfigError for a value that cannot work.
    """

    #: The master key: 32 bytes (raw, hexadecimal or base64), or a passphrase of at least 12 characters.
    encryption_key: Secret = _setting("encryption_key", "")  # noqa: RUF009 - it makes a field
    #: Master keys used before: they still open what they wrapped; `encryption_key` wraps new data keys.
    #: In HAIVE_OLDER_ENCRYPTION_KEYS they are separated by semicolons.
    older_encryption_keys: Sequence[Secret] = field(
        default_factory=lambda: _several(os.environ.get("HAIVE_OLDER_ENCRYPTION_KEYS", ""))
    )

    #: Top-level fields of the store's values that filters find by equality: a keyed hash of each is stored.
    searchable_fields: Sequence[str] = ()
    #: Top-level fields of the store's values that are stored in the clear too, for filters of every kind.
    readable_fields: Sequence[str] = ()
    #: Whether a store may have `index=`: vectors are stored in the clear, and tell much of their texts.
    readable_embeddings: bool = False
    #: What to do with plaintext that was written before a tenant had its first key. False refuses it until
    #: `seal_existing()` has sealed it. True seals it when it is first read; a list or a search then waits
    #: until all it looks through is sealed. Plaintext written later is refused either way.
    accept_earlier_plaintext: bool = False

    def __post_init__(self) -> None:
        for name in ("searchable_fields", "readable_fields"):
            fields_: object = getattr(self, name)
            if not isinstance(fields_, list | tuple) or not all(
                isinstance(field_, str) for field_ in fields_
            ):
                raise ConfigError(f'{name} is a sequence of names: write ("kind",) for one')
            object.__setattr__(self, name, tuple(fields_))
        if both := set(self.searchable_fields) & set(self.readable_fields):
            raise ConfigError(
                f"{sorted(both)[0]!r} is in readable_fields and in searchable_fields: choose one"
            )
        for name in ("readable_embeddings", "accept_earlier_plaintext"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name}={getattr(self, name)!r}: write True or False")
        older: object = self.older_encryption_keys
        if not isinstance(older, list | tuple):
            raise ConfigError("older_encryption_keys is a sequence of keys: write (key,) for one")
        object.__setattr__(self, "older_encryption_keys", tuple(older))
        _check_secret("encryption_key", self.encryption_key)
        for key in self.older_encryption_keys:
            _check_secret("a key of older_encryption_keys", key)

    def has_keys_of(self, other: EncryptionConfig) -> bool:
        """True if both name the same keys, whatever else they say."""
        mine, theirs = self.encryption_key, other.encryption_key
        return mine == theirs and self.older_encryption_keys == other.older_encryption_keys

    def __repr__(self) -> str:
        older = ", ".join("***" for _ in self.older_encryption_keys)
        return f"EncryptionConfig(encryption_key=***, older_encryption_keys=({older}))"


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _check_secret(name: str, secret: object) -> None:
    """Types and lengths only: to make a key of a passphrase takes half a second."""
    if not secret:
        raise ConfigError(
            f"{name} is empty; is the variable set that it comes from? Give 32 bytes or a passphrase"
        )
    if not isinstance(secret, str | bytes):
        raise ConfigError(f"{name} is a {type(secret).__name__}: give 32 bytes, or text")
    if len(secret) < MIN_PASSPHRASE:
        raise ConfigError(
            f"{name} is too short: give 32 bytes, or a passphrase of at least {MIN_PASSPHRASE} characters"
        )


def _encryption_of_environment() -> EncryptionConfig | None:
    return EncryptionConfig() if os.environ.get("HAIVE_ENCRYPTION_KEY") else None


@dataclass(frozen=True, kw_only=True, repr=False)
class PersistenceConfig:
    """Settings of a database: where the data lives, and how connections to it behave.

    Durations are seconds, or text as Postgres reads it ("30s", "500ms"); sizes are text as
    Postgres reads it ("64MB"). None leaves the server's own setting alone.
    Raises ConfigError for a value that cannot work.
    """

    #: "postgresql://…" or "host=… dbname=…"; SQLAlchemy's "postgresql+psycopg://…" will do too. Left out, or
    #: None, is the embedded Postgres; None is taken for a variable that is not set, and warned of.
    connection_string: str | None = LEFT_OUT
    #: False refuses the embedded Postgres: without a connection string the configuration is an error.
    embedded: bool = _setting("embedded", True, _boolean)
    #: The schema all tables live in. It need not be on the search_path.
    schema: str = _setting("schema", "haive")
    #: The tenant that rows belong to unless `for_tenant` says otherwise.
    tenant: str = _setting("tenant", "default")

    #: Seals everything the user made, in the checkpointer and in the store; None stores in the clear.
    #: Set by HAIVE_ENCRYPTION_KEY too.
    encryption: EncryptionConfig | None = field(default_factory=_encryption_of_environment)

    #: Connections kept open, per process and for async code per event loop. If the server or the role allows
    #: fewer than `pool_size + max_overflow`, callers share those that there are.
    pool_size: int = _setting("pool_size", 5, _whole)
    #: Connections above `pool_size` that a burst may open; closed when they have been idle for seconds.
    max_overflow: int = _setting("max_overflow", 5, _whole)
    #: Seconds to wait for a free connection, or for a server that restarts.
    pool_timeout: float = _setting("pool_timeout", 30.0, _seconds)
    #: What stands between us and the server. "transaction": a pooler such as pgbouncer or
    #: Supavisor that may give every transaction another server connection. "session": nothing,
    #: or a pooler that does not. "auto" looks, and takes any pooler for the former.
    pooler: PoolerMode = _setting("pooler", "auto")  # noqa: RUF009 - it makes a field
    #: After how many uses a statement is prepared on a connection; None, or never in the
    #: variable, is never. "auto" prepares at once, or never behind a transaction pooler.
    prepare_threshold: int | Literal["auto"] | None = _setting("prepare_threshold", "auto", _threshold)
    #: Log every round trip, its time and its rows, to the logger "haive_persistence.sql".
    echo_sql: bool = _setting("echo_sql", False, _boolean)

    #: Postgres' `statement_timeout`, if it is set: a number (and a bare number in the variable) is
    #: seconds; text is Postgres' own, such as "500ms" or "30s".
    statement_timeout: str | float | None = _setting("statement_timeout", None, _duration)
    #: Postgres' `lock_timeout`, if it is set; written like `statement_timeout`.
    lock_timeout: str | float | None = _setting("lock_timeout", None, _duration)
    #: Postgres' `idle_in_transaction_session_timeout`, if it is set; written like `statement_timeout`.
    idle_in_transaction_session_timeout: str | float | None = _setting(
        "idle_in_transaction_session_timeout", None, _duration
    )
    work_mem: str | None = _setting("work_mem", None)
    maintenance_work_mem: str | None = _setting("maintenance_work_mem", None)
    effective_cache_size: str | None = _setting("effective_cache_size", None)

    #: Directory of the embedded server; None is the user's data directory, which for root is
    #: /var/lib/haive-persistence.
    data_dir: str | os.PathLike[str] | None = _setting("data_dir", None)  # noqa: RUF009
    _none_was_passed: ClassVar[bool] = False  # set on the instance

    #: Settings the embedded server is started with, such as {"shared_buffers": "1GB"}.
    #: In HAIVE_EMBEDDED_SETTINGS they are separated by semicolons.
    embedded_settings: Mapping[str, str] = field(
        default_factory=lambda: _pairs(os.environ.get("HAIVE_EMBEDDED_SETTINGS", ""))
    )

    def __post_init__(self) -> None:
        self._check_connection_string()
        check_tenant(self.tenant)
        if not _is_schema(self.schema):
            raise ConfigError(
                f"schema={self.schema!r}: use at most 40 letters, digits and underscores; not pg_ in front"
            )
        if (
            not _is_count(self.pool_size)
            or self.pool_size < 1
            or not _is_count(self.max_overflow)
            or not _is_number(self.pool_timeout)
            or not 0 < self.pool_timeout <= LONGEST_WAIT_S
        ):
            raise ConfigError(
                "pool_size must be a whole number of 1 or more, max_overflow one of 0 or more, pool_timeout "
                f"above 0 seconds and at most {LONGEST_WAIT_S:,}"
            )
        if type(self.encryption) not in (EncryptionConfig, type(None)):
            raise ConfigError(
                f"encryption is a {type(self.encryption).__name__}: give an EncryptionConfig, or None"
            )
        for name in ("echo_sql", "embedded"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name}={getattr(self, name)!r}: write True or False")
        for name in _DURATIONS:
            _check_duration(name, getattr(self, name))
        for name in _SETTINGS:
            if getattr(self, name) is not None and type(getattr(self, name)) is not str:
                raise ConfigError(
                    f'{name}={getattr(self, name)!r}: write it as Postgres does, such as "64MB"'
                )
        if not _is_a(self.embedded_settings, Mapping):
            raise ConfigError(f"embedded_settings={self.embedded_settings!r}: give names and values")
        if not _is_a(self.data_dir, str, os.PathLike, type(None)):
            raise ConfigError(f"data_dir={self.data_dir!r}: give a path")
        if self.data_dir is not None and not os.fspath(self.data_dir):
            object.__setattr__(self, "data_dir", None)
        given = self.data_dir is not None and os.fspath(self.data_dir) != os.environ.get("HAIVE_DATA_DIR")
        if given and self.connection_string is not None:
            if self.connection_string != (os.environ.get("HAIVE_CONNECTION_STRING") or None):
                raise ConfigError(
                    "data_dir is the embedded server's: give it or a connection_string, not both"
                )
            object.__setattr__(self, "connection_string", None)  # what is given wins over a variable
        if self.connection_string is None and not self.embedded:
            raise ConfigError(
                "there is no connection string, and embedded=False refuses the embedded Postgres: is the "
                "variable set that the connection string comes from?"
            )
        if self.pooler not in ("auto", "session", "transaction"):
            raise ConfigError(f'pooler={self.pooler!r}: write "auto", "session" or "transaction"')
        if self.prepare_threshold not in (None, "auto") and not _is_count(self.prepare_threshold):
            raise ConfigError(
                f'prepare_threshold={self.prepare_threshold!r}: write "auto", None or 0 and more'
            )

    def _check_connection_string(self) -> None:
        given = self.connection_string
        _check_text("connection_string", given)
        # An explicit None is what os.environ.get() returns for a variable that is not set.
        object.__setattr__(self, "_none_was_passed", given is None)
        if given == LEFT_OUT:
            object.__setattr__(self, "connection_string", os.environ.get("HAIVE_CONNECTION_STRING") or None)

    @property
    def embedded_by_none(self) -> bool:
        """True if the embedded Postgres is used because None was passed as the connection string."""
        return self.connection_string is None and self._none_was_passed and self.data_dir is None

    @property
    def masked_connection_string(self) -> str:
        """The connection string without secrets, to be shown."""
        if self.connection_string is None:
            return "embedded"
        return mask_secrets(self.connection_string)

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.connection_string is not None:
            shown["connection_string"] = self.masked_connection_string
        return f"PersistenceConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def session_settings(self) -> dict[str, str]:
        """The Postgres settings asked for, as name and value."""
        values = ((name, getattr(self, name)) for name in (*_DURATIONS, *_SETTINGS))
        return {name: _guc(value) for name, value in values if value is not None}

    def prepares_after(self, *, pooled: bool) -> int | None:
        """`prepare_threshold` with "auto" decided; `pooled` if transactions may change connections."""
        if self.prepare_threshold != "auto":
            return self.prepare_threshold
        return None if pooled else 0


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str | None):
        raise ConfigError(f"{name} is a {type(value).__name__}: give text, or leave it out")


def check_tenant(tenant: object) -> str:
    """`tenant`, if it can be one. Raises InvalidIdentifierError."""
    if not isinstance(tenant, str) or not 0 < len(tenant) <= 255 or "\0" in tenant or not is_utf8(tenant):
        raise InvalidIdentifierError(f"tenant={tenant!r}: use a text of 1 to 255 characters without NUL")
    return tenant


def _is_schema(name: object) -> bool:
    if not isinstance(name, str) or not _SCHEMA.fullmatch(name):
        return False
    return not name.lower().startswith("pg_") and name != "information_schema"


def _is_a(value: object, *types: type) -> bool:
    return isinstance(value, types)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_duration(name: str, value: Any) -> None:
    if value is None or isinstance(value, str) or (_is_number(value) and value >= 0):
        return
    raise ConfigError(f'{name}={value!r}: give seconds, or text as Postgres reads it, such as "30s"')


def _guc(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{math.ceil(value * 1000)}ms"  # 0 is no limit at all: what is above it must not become 0
