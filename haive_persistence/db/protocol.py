"""The `Db` protocol, all that the rooms may ask of a database, and `run_sync`.

The logic of every room is written once, as plain `async def` over `Db`. Two runners implement it:
`AsyncDb` really awaits; `BlockingDb`'s methods block and never suspend, so `run_sync` can drive
the same coroutine to its end with one `send(None)`: no thread, no event loop.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

Row = tuple[Any, ...]
Params = Sequence[object] | Mapping[str, object]


#: Ends the text of a query that is planned once for all parameters.
GENERIC_PLAN = "\n-- one plan for all parameters"


class Query(str):
    """SQL text that came out of `sql/`, its schema filled in. Only the loader makes one.

    Parameters are written `%(name)s`, or `%s` by place; a percent sign is always written `%%`.
    Every int is sent as bigint (write `%(n)s::int` where an int is wanted), text without a type.
    """

    __slots__ = ()


class Statement(NamedTuple):
    """One query with its bound parameters."""

    query: Query
    params: Params = ()


class Executor(Protocol):
    """Runs statements for one tenant, which `%(tenant)s` is bound to unless the parameters name another."""

    async def fetch_all(self, query: Query, params: Params = (), *, idempotent: bool = False) -> list[Row]:
        """Run one statement and return its rows.

        With `idempotent=True` the statement may be sent a second time when the connection dies
        before its answer arrived; otherwise that raises `AmbiguousCommitError` (a statement that
        is known not to have run is always tried again on a fresh connection).
        """
        ...

    async def fetch_one(self, query: Query, params: Params = (), *, idempotent: bool = False) -> Row | None:
        """Run one statement and return its first row, or None."""
        ...

    async def execute(self, query: Query, params: Params = (), *, idempotent: bool = False) -> int:
        """Run one statement and return how many rows it touched."""
        ...

    async def batch(self, statements: Sequence[Statement], *, idempotent: bool = False) -> list[list[Row]]:
        """Run several statements in one transaction and one round trip; their rows, in order."""
        ...


class Db(Executor, Protocol):
    """A pool of connections to one database, bound to one tenant."""

    @property
    def tenant(self) -> str: ...

    def for_tenant(self, tenant: str) -> Db:
        """The same pool, seen as another tenant."""
        ...

    def transaction(
        self, *, isolation: str | None = None, read_only: bool = False
    ) -> AbstractAsyncContextManager[Executor]:
        """A transaction: committed when the block ends, rolled back when it raises.

        `isolation` is None (the server's default) or "repeatable read" or "serializable".
        """
        ...


def run_sync(coro: Coroutine[Any, Any, T]) -> T:
    """Drive a coroutine that never suspends (one that only uses a `BlockingDb`) to its result.

    Raises RuntimeError if it does suspend: it awaited something that is not blocking.
    """
    try:
        coro.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coro.close()
    raise RuntimeError("a blocking call awaited something asynchronous; use the async method instead")
