"""Every error this package raises on purpose.

    PersistenceError                  code            also a
    ├── ConfigError                   config          ValueError
    ├── InvalidInputError             invalid_input   ValueError
    │   ├── InvalidIdentifierError    invalid_id      ValueError
    │   ├── NameTakenError            name_taken      ValueError
    │   └── ProtectedError            protected       ValueError
    ├── NotFoundError                 not_found       KeyError
    ├── ClosedError                   closed          RuntimeError
    ├── DatabaseError                 database
    │   ├── UnavailableError          unavailable     ConnectionError
    │   │   ├── LoginError            login           (wrong user or password)
    │   │   ├── NoDatabaseError       no_database
    │   │   └── TooManyConnectionsError  too_many_connections
    │   ├── AmbiguousCommitError      ambiguous_commit
    │   ├── ConflictError             conflict
    │   └── TimedOutError             timeout         TimeoutError
    ├── MigrationError                migration
    ├── MergeConflictError            merge_conflict
    ├── EmbeddedServerError           embedded        RuntimeError
    └── CodecError                    codec
        ├── EncodeError               encode          TypeError, ValueError
        ├── DecodeError               decode          ValueError
        └── SealError                 seal
            ├── WrongKeyError         wrong_key
            ├── TamperedError         tampered
            └── PlaintextRefusedError plaintext_refused

`code` is stable and append-only: programs may test it, texts may change. Errors of the
database keep its SQLSTATE in `sqlstate` and are chained to the driver's own error.

`error.is_transient` tells a retry loop whether the same call may succeed later, with nothing changed:
an outage, too many connections, a conflict, a timeout. Read the data back after AmbiguousCommitError first.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PersistenceError(Exception):
    """Something this package could not do; the text says what to do next."""

    code: ClassVar[str] = "persistence"
    is_transient: ClassVar[bool] = False
    """True if the same call may succeed later, with nothing changed."""


class ConfigError(PersistenceError, ValueError):
    """A setting is missing, malformed or contradicts another."""

    code = "config"


class InvalidInputError(PersistenceError, ValueError):
    """An argument cannot be stored or searched for; nothing was changed."""

    code = "invalid_input"


class InvalidIdentifierError(InvalidInputError):
    """A thread id, namespace, key or tenant is not one this package accepts."""

    code = "invalid_id"


class NameTakenError(InvalidInputError):
    """The thread has a branch or tag of this name, or had a tag of it: choose another one."""

    code = "name_taken"


class ProtectedError(InvalidInputError):
    """The branch is protected: runs do not add to it, and it is neither renamed nor deleted."""

    code = "protected"


class NotFoundError(PersistenceError, KeyError):
    """The thing asked for does not exist (or belongs to another tenant)."""

    code = "not_found"

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return str(self.args[0]) if self.args else self.code


class MergeConflictError(PersistenceError):
    """A merge has conflicts whose policy is "fail"; nothing was changed.

    `conflicts` are those conflicts. Give another policy, or change one side.
    """

    code = "merge_conflict"

    def __init__(self, message: str, conflicts: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.conflicts = conflicts


class ClosedError(PersistenceError, RuntimeError):
    """The database was closed; make a new one."""

    code = "closed"

    def __init__(self) -> None:
        super().__init__(
            "this Database was closed, and with it every saver, store and tenant's view that uses it: make a "
            "new one, or close it later"
        )


class DatabaseError(PersistenceError):
    """Postgres refused a statement. `sqlstate` is its five-letter code, or None."""

    code = "database"

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class UnavailableError(DatabaseError, ConnectionError):
    """The server cannot be reached, or the connection died before anything happened."""

    code = "unavailable"
    is_transient = True


class LoginError(UnavailableError):
    """The server refuses the user, the password or the certificate. Trying again does not help."""

    code = "login"
    is_transient = False


class NoDatabaseError(UnavailableError):
    """The server has no database of this name. Trying again does not help."""

    code = "no_database"
    is_transient = False


class TooManyConnectionsError(UnavailableError):
    """The server, the role or the pooler allows no more connections; try again, or lower `pool_size`."""

    code = "too_many_connections"


class AmbiguousCommitError(DatabaseError):
    """The connection died after COMMIT was sent: the work may or may not have been committed.

    Read the data back before you try again.
    """

    code = "ambiguous_commit"


class ConflictError(DatabaseError):
    """Another writer changed the same rows at the same time; try again."""

    code = "conflict"
    is_transient = True


class TimedOutError(DatabaseError, TimeoutError):
    """A statement, a lock or the wait for a connection took longer than configured."""

    code = "timeout"
    is_transient = True


class MigrationError(PersistenceError):
    """The schema could not be brought to this version, or is newer than this package."""

    code = "migration"


class EmbeddedServerError(PersistenceError, RuntimeError):
    """The embedded Postgres could not be installed, started or reached."""

    code = "embedded"


class CodecError(PersistenceError):
    """A value could not be turned into bytes, or bytes into a value."""

    code = "codec"


class EncodeError(CodecError, TypeError, ValueError):
    """The value has a part that cannot be stored."""

    code = "encode"


class DecodeError(CodecError, ValueError):
    """Stored bytes are damaged, or were written by a newer version of this package."""

    code = "decode"


class SealError(CodecError):
    """Something about encryption is wrong; nothing was returned and nothing deleted."""

    code = "seal"


class WrongKeyError(SealError):
    """The key given is not the one the data was sealed with."""

    code = "wrong_key"


class TamperedError(SealError):
    """Sealed bytes were changed, or moved here from another row."""

    code = "tampered"


class PlaintextRefusedError(SealError):
    """A row that should be sealed is not."""

    code = "plaintext_refused"
