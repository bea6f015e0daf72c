"""Settings of the checkpointer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from haive_persistence.errors import ConfigError

Secret = str | bytes


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How checkpoints are stored.

    Raises ConfigError for a value that cannot work.
    """

    #: "zstd", or None to store as serialised.
    compression: str | None = "zstd"
    #: The master key everything the user made is sealed under: 32 bytes (raw, hex or base64) or a passphrase.
    #: None stores in the clear. Once given, unsealed rows are refused.
    encryption_key: Secret | None = field(default=None, repr=False)
    #: Master keys used before: they still open what they sealed; `encryption_key` wraps new data keys.
    older_encryption_keys: Sequence[Secret] = field(default=(), repr=False)
    #: Metadata keys kept in the clear besides, so that `list(filter=…)` finds them in SQL; all others are
    #: compared after decoding.
    searchable_metadata: Sequence[str] = ()
    #: Memory for what this process knows of the threads it used last, about, in bytes.
    cache_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.compression not in (None, "zstd"):
            raise ConfigError(f'compression={self.compression!r}: use "zstd" or None')
        if self.encryption_key is not None and not self.encryption_key:
            raise ConfigError("encryption_key is empty: give 32 bytes or a passphrase, or None for none")
        if isinstance(self.searchable_metadata, str):
            raise ConfigError("searchable_metadata is a sequence of keys, not one string")
        if self.cache_bytes < 0:
            raise ConfigError(f"cache_bytes={self.cache_bytes}: give the number of bytes, 0 or more")
        if self.older_encryption_keys and self.encryption_key is None:
            raise ConfigError("older_encryption_keys need an encryption_key that is current")
