"""Settings of the checkpointer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from haive_persistence.codec.limits import MAX_READ_BYTES
from haive_persistence.config import EncryptionConfig, Secret
from haive_persistence.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Settings of the storage of checkpoints.

    Raises ConfigError for a value that cannot work.
    """

    #: "zstd", or None to store as serialised.
    compression: str | None = "zstd"
    #: Short for `PersistenceConfig(encryption=EncryptionConfig(encryption_key=…))`, which a store on the same
    #: database needs anyway. The saver's own `database` then has these keys.
    encryption_key: Secret | None = field(default=None, repr=False)
    older_encryption_keys: Sequence[Secret] = field(default=(), repr=False)
    #: Memory for what this process knows of the threads it used last, about, in bytes.
    cache_bytes: int = 256 * 1024 * 1024
    #: The most bytes that one read of a thread may unpack to; Python's objects take several times as much.
    #: More is refused with a DecodeError before memory is asked for: a forged row may claim any size.
    max_read_bytes: int = MAX_READ_BYTES

    def __post_init__(self) -> None:
        if self.compression not in (None, "zstd"):
            raise ConfigError(f'compression={self.compression!r}: use "zstd" or None')
        if self.cache_bytes < 0:
            raise ConfigError(f"cache_bytes={self.cache_bytes}: give the number of bytes, 0 or more")
        if type(self.max_read_bytes) is not int or self.max_read_bytes < 1:
            raise ConfigError(f"max_read_bytes={self.max_read_bytes!r}: give the number of bytes, 1 or more")
        if self.older_encryption_keys and self.encryption_key is None:
            raise ConfigError("older_encryption_keys need an encryption_key that is current")
        self.encryption()  # checks the keys

    def encryption(self) -> EncryptionConfig | None:
        """The keys that are set here, for the database; None if there are none."""
        if self.encryption_key is None:
            return None
        return EncryptionConfig(
            encryption_key=self.encryption_key, older_encryption_keys=self.older_encryption_keys
        )
