"""Encryption of one database: its tenants' data keys, and bytes sealed for the row they are stored in.

`EncryptionConfig` (of `config`) names the master key. `DataKeys` loads each tenant's data keys, and makes the
first one when something is first written. `Sealing` seals and opens under them; the rooms above bind every
record to its table and row with it.
"""

from haive_persistence.keys.data_keys import DataKeys, TenantKeys
from haive_persistence.keys.names import NameSealer
from haive_persistence.keys.sealing import PlaintextRowError, Sealing, Sealings, SealProgress

__all__ = ["DataKeys", "NameSealer", "PlaintextRowError", "SealProgress", "Sealing", "Sealings", "TenantKeys"]
