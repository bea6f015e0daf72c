"""One round trip over one connection.

However many statements an operation has, and whatever must be said before and after them, they
leave in one write and their answers come back together: an *exchange*. It is libpq's pipeline
mode with a single Sync, so statements without BEGIN are one transaction all the same. Writing it
over psycopg's libpq wrapper instead of its cursors halves the time of a statement and makes a
pipeline of four as fast as one (docs/design/0004-connections.md has the numbers).

`exchange` is a generator in psycopg's manner: it yields when the socket is not ready, and
`Connection.wait` or `await AsyncConnection.wait` drives it.
"""

from __future__ import annotations

import json
import re
import secrets
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import psycopg
from psycopg import generators
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.types.json import set_json_loads
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from psycopg.waiting import Wait

from haive_persistence.db.error_mapping import CommitState, ExchangeFailure
from haive_persistence.db.protocol import GENERIC_PLAN, Params, Query, Row, Statement
from haive_persistence.errors import InvalidInputError

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

_TUPLES = ExecStatus.TUPLES_OK
_DONE = ExecStatus.COMMAND_OK
_FATAL = ExecStatus.FATAL_ERROR
_SYNC = ExecStatus.PIPELINE_SYNC
_IDLE = TransactionStatus.IDLE
_COPY = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)
_BINARY = 1

#: Statements kept prepared on one connection; the least recently used one makes room.
MAX_PREPARED = 300

# Statements with one plan look rows up by keys. A plan made for an empty or tiny table would read all of it,
# and go on to when it has grown, until the next ANALYZE: they are planned without sequential scans.
_SET_PLANS = {
    True: (b"SET plan_cache_mode = force_generic_plan", b"SET enable_seqscan = off"),
    False: (b"RESET plan_cache_mode", b"RESET enable_seqscan"),
}

_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|s|%|(.?))", re.DOTALL)
_UNSENDABLE = (psycopg.DataError, psycopg.ProgrammingError, UnicodeEncodeError, OverflowError, struct.error)


#: What an exchange yields: a result for each statement, or what went wrong.
Outcome = Union["list[PGresult]", ExchangeFailure]


class _Compiled(NamedTuple):
    text: bytes
    order: tuple[str, ...]
    positional: bool
    formats: list[PyFormat]
    values: Callable[[Mapping[str, object]], Sequence[object]]  # of the parameters, in order
    generic: bool  # planned once for all parameters


class _Bound(NamedTuple):
    query: str
    compiled: _Compiled
    values: Sequence[Any] | None
    types: tuple[int, ...]
    formats: Sequence[Any] | None


_Key = tuple[str, tuple[int, ...]]

_compiled: dict[str, _Compiled] = {}


def _compile(query: str) -> _Compiled:
    found = _compiled.get(query)
    if found is None:
        if len(_compiled) > 2000:  # queries built at run time must not pile up
            _compiled.clear()
        found = _compiled[query] = _parse(query)
    return found


def _parse(query: str) -> _Compiled:
    order: list[str] = []
    named = False

    def number(match: re.Match[str]) -> str:
        nonlocal named
        if match[0] == "%%":
            return "%"
        if match[2] is not None:
            raise ValueError(f"write %% for a percent sign, %s or %(name)s for a parameter: {query}")
        name = match[1] or str(len(order))
        named = named or match[1] is not None
        if name not in order:
            order.append(name)
        return f"${order.index(name) + 1}"

    text = _PLACEHOLDER.sub(number, query).encode()
    formats = [PyFormat.AUTO] * len(order)
    return _Compiled(text, tuple(order), not named, formats, _getter(order), query.endswith(GENERIC_PLAN))


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, object]], Sequence[object]]:
    """A function that returns the values of these names in a mapping."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda params: [params[name] for name in names]


class PipelinedConnection:
    """A connection, and what this package knows about its state on the server."""

    __slots__ = (
        "_generic",
        "_mark",
        "_names",
        "_pg",
        "_serial",
        "_threshold",
        "_tx",
        "_uses",
        "born",
        "driver",
        "idle_since",
        "tenant",
    )

    def __init__(self, conn: Connection[Any] | AsyncConnection[Any], prepares_after: int | None) -> None:
        # One type for every int: by default it varies with the value, and each is another plan.
        conn.adapters.register_dumper(int, Int8Dumper)  # in lists
        conn.adapters.register_dumper(int, Int8BinaryDumper)
        set_json_loads(_load_json, conn)  # whatever the application has made psycopg's default
        conn._pool = None  # dropping an idle connection is no reason to warn
        #: A Connection or an AsyncConnection, whichever its pool opens.
        self.driver: Any = conn
        #: The tenant the session is set to; None when that is not known.
        self.tenant: str | None = None
        self.born = self.idle_since = time.monotonic()
        self._pg = conn.pgconn
        self._tx = Transformer(conn)
        self._names: dict[_Key, bytes] = {}
        self._uses: dict[_Key, int] = {}
        self._serial = 0
        # Behind a pooler that mixes up sessions, a name means nothing rather than another's statement.
        self._mark = secrets.token_hex(4).encode()
        self._threshold = prepares_after
        #: Whether the server makes one plan for all parameters; None when that is not known.
        self._generic: bool | None = False

    # -- state --------------------------------------------------------------------------------

    def alive(self) -> bool:
        """False if the server has hung up. Asks the socket, not the server: about 1 µs."""
        pg = self._pg
        try:
            pg.consume_input()
            pg.consume_input()  # the first may have read the server's last words
        except psycopg.Error:
            return False
        return pg.status == ConnStatus.OK

    def reusable(self) -> bool:
        """Whether the session is where a new exchange may begin."""
        pg = self._pg
        return (
            pg.status == ConnStatus.OK
            and pg.transaction_status == _IDLE
            and pg.pipeline_status == PipelineStatus.OFF
        )

    @property
    def in_transaction(self) -> bool:
        """Whether a ROLLBACK could bring the session back."""
        pg = self._pg
        return pg.pipeline_status == PipelineStatus.OFF and pg.transaction_status in (
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        )

    def close(self) -> None:
        """Hang up."""
        self.tenant = None
        self.driver._closed = True
        self._pg.finish()

    # -- reading results ----------------------------------------------------------------------

    def rows(self, result: PGresult) -> list[Row]:
        """The rows of a result; only until the next exchange on this connection."""
        if result.status != _TUPLES:
            return []
        tx = self._tx
        tx.set_pgresult(result)
        return tx.load_rows(0, result.ntuples, tuple)

    def count(self, result: PGresult) -> int:
        """The number of rows that a statement touched, or returned."""
        return result.command_tuples or 0

    # -- the exchange -------------------------------------------------------------------------

    def exchange(
        self,
        before: Sequence[bytes],
        statements: Sequence[Statement],
        after: Sequence[bytes] = (),
        tenant: str = "",
    ) -> PQGen[Outcome]:
        """Send everything in one go; the outcome has the result of each of `statements`.

        `before` and `after` are statements without parameters; a COMMIT is the first of `after`. `tenant` is
        bound to `%(tenant)s` where the parameters of a statement do not name another.
        Raises InvalidInputError for a parameter that cannot be sent, before anything is.
        """
        bound = [self._bind(query, params, tenant) for query, params in statements]
        pg = self._pg
        generic = self._plan_mode(before, bound)
        if generic is not None and generic != self._generic:
            before = (*before, *_SET_PLANS[generic])
        known, self._generic = generic, None  # until the answer says otherwise
        answers, places, fresh = 0, list[int](), dict[_Key, int]()
        try:
            pg.enter_pipeline_mode()
            answers, places = self._queue(before, bound, after, fresh)
            pg.pipeline_sync()
            if pg.flush():
                yield from generators.send(pg)
            results, lost = yield from _receive(pg)
        except psycopg.OperationalError as error:
            results, lost = [], error
        if lost is None:
            pg.exit_pipeline_mode()
            if len(results) == answers and _FATAL not in [result.status for result in results]:
                self._generic = known
                return [results[place] for place in places]
        for key, place in fresh.items():
            if not (place < len(results) and results[place].status == _DONE):
                self._names.pop(key, None)
        return self._verdict(results, lost, commit_at=answers - len(after))

    def _plan_mode(self, before: Sequence[bytes], bound: Sequence[_Bound]) -> bool | None:
        """Whether the statements are to be planned for all parameters.

        It stays as it is in transactions, whose end may undo a setting, and where sessions are not ours.
        """
        if self._threshold != 0 or not bound or self._pg.transaction_status != _IDLE:
            return self._generic
        for text in before:
            if text.startswith(b"BEGIN"):
                return self._generic
        return False not in [one.compiled.generic for one in bound]

    def _queue(
        self,
        before: Sequence[bytes],
        bound: Sequence[_Bound],
        after: Sequence[bytes],
        fresh: dict[_Key, int],
    ) -> tuple[int, list[int]]:
        """Queue everything; returns how many answers will come and which are the statements'.

        `fresh` receives the statements that are prepared, and which answers say that they are.
        """
        pg = self._pg
        answers = len(before)
        for text in before:
            pg.send_query_params(text, None)
        places: list[int] = []
        for statement in bound:
            answers += self._queue_one(statement, answers, fresh)
            places.append(answers - 1)
        while len(self._names) > max(MAX_PREPARED, len(bound)):
            answers += self._forget_oldest()
        for text in after:
            pg.send_query_params(text, None)
        return answers + len(after), places

    def _queue_one(self, bound: _Bound, place: int, fresh: dict[_Key, int]) -> int:
        """Queue one statement, prepared if it is time to; returns how many answers it brings."""
        pg, key = self._pg, (bound.query, bound.types)
        name = self._names.get(key)
        if name is not None:
            pg.send_query_prepared(name, bound.values, bound.formats, _BINARY)
            return 1
        if not self._worth_preparing(key):
            pg.send_query_params(bound.compiled.text, bound.values, bound.types, bound.formats, _BINARY)
            return 1
        self._serial += 1
        name = self._names[key] = b"haive_%s_%d" % (self._mark, self._serial)
        fresh[key] = place
        pg.send_prepare(name, bound.compiled.text, bound.types)
        pg.send_query_prepared(name, bound.values, bound.formats, _BINARY)
        return 2

    def _bind(self, query: Query, params: Params, tenant: str) -> _Bound:
        compiled = _compile(query)
        if not compiled.order:
            return _Bound(query, compiled, None, (), None)
        values = _in_order(query, compiled, params, tenant)
        tx = self._tx
        try:
            sendable = tx.dump_sequence(values, compiled.formats)
        except _UNSENDABLE as error:
            raise InvalidInputError(f"a value cannot be sent to Postgres: {error}") from error
        return _Bound(query, compiled, sendable, tx.types or (), tx.formats)

    def _worth_preparing(self, key: _Key) -> bool:
        if not self._threshold:
            return self._threshold == 0
        if len(self._uses) > 2000:
            self._uses.clear()
        uses = self._uses[key] = self._uses.get(key, 0) + 1
        return uses > self._threshold

    def _forget_oldest(self) -> int:
        name = self._names.pop(next(iter(self._names)))
        if psycopg.capabilities.has_send_close_prepared():
            self._pg.send_close_prepared(name)
        else:
            self._pg.send_query_params(b"DEALLOCATE " + name, None)
        return 1

    def _verdict(
        self, results: list[PGresult], lost: psycopg.Error | None, commit_at: int
    ) -> ExchangeFailure:
        """The failure, with what is known of its commit.

        The server answers in order and commits last. An error it sent for anything before the
        commit therefore means that nothing was committed, even if the connection is gone after it.
        """
        at, bad = next(((i, r) for i, r in enumerate(results) if r.status == _FATAL), (0, None))
        if bad is None:
            return ExchangeFailure(
                lost or psycopg.OperationalError("the connection was lost"), CommitState.UNKNOWN
            )
        error = psycopg.errors.error_from_result(bad, encoding="utf-8")
        if error.sqlstate is None:  # libpq's own words, not the server's
            return ExchangeFailure(error, CommitState.UNKNOWN)
        if _is_stale(error):
            return ExchangeFailure(error, CommitState.NOT_RUN)
        if lost is None and self._pg.status == ConnStatus.OK:
            return ExchangeFailure(error, CommitState.REFUSED)
        return ExchangeFailure(error, CommitState.NOT_RUN if at < commit_at else CommitState.UNKNOWN)


def _load_json(data: bytes | str) -> Any:
    """`json.loads`, which need not find out the encoding: Postgres sends UTF-8."""
    return _decode_json(data if isinstance(data, str) else data.decode())


_decode_json = json.JSONDecoder().decode


def _in_order(query: str, compiled: _Compiled, params: Params, tenant: str) -> Sequence[object]:
    if compiled.positional:
        if isinstance(params, Mapping) or len(params) != len(compiled.order):
            raise TypeError(f"{len(compiled.order)} parameters in a sequence are wanted by: {query}")
        return params
    if type(params) is not dict and not isinstance(params, Mapping):
        if params:
            raise TypeError(f"parameters by name are wanted by: {query}")
        params = {}
    if "tenant" not in params:
        params = {**params, "tenant": tenant}
    try:
        return compiled.values(params)
    except KeyError as missing:
        raise TypeError(f"the parameter {missing} is wanted by: {query}") from None


def _receive(pg: PGconn) -> PQGen[tuple[list[PGresult], psycopg.Error | None]]:
    """All answers up to the Sync's, or up to where the connection was lost.

    Not psycopg's `fetch_many`: that gives up the interpreter lock four times for each answer, and many
    threads then hand it around instead of working.
    """
    results: list[PGresult] = []
    try:
        yield Wait.R
        pg.consume_input()
        while True:
            while pg.is_busy():
                yield Wait.R
                pg.consume_input()
            if not _take(pg, results):
                return results, psycopg.OperationalError("the server closed the connection")
            status = results[-1].status
            if status == _SYNC:
                results.pop()
                return results, None
            if status in _COPY:
                raise psycopg.NotSupportedError("COPY does not work here")
    except psycopg.OperationalError as error:
        while not pg.is_busy() and _take(pg, results):
            pass  # the server's last words: they say what became of the work
        return results, error


def _take(pg: PGconn, results: list[PGresult]) -> bool:
    """Take the answer to one statement, or the Sync's, which is there; False if there is none."""
    result = pg.get_result()
    if result is None:
        return False
    results.append(result)
    if result.status != _SYNC:
        pg.get_result()  # None: the end of that answer
    return True


def _is_stale(error: psycopg.Error) -> bool:
    """Whether a prepared statement is out of date: overtaken by DDL, or no longer there."""
    return error.sqlstate == "26000" or (error.sqlstate == "0A000" and "cached plan" in str(error))
