"""Names of branches: resolved in one round trip, and remembered at the thread's epoch."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from haive_persistence.checkpointer.context import TenantContext
from haive_persistence.checkpointer.ids import Address, check_text, digest64, line_name, shown
from haive_persistence.checkpointer.storage.piece_index import ThreadLog
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, Line, View
from haive_persistence.checkpointer.versions.ref_records import open_ref
from haive_persistence.db.protocol import Db, Executor, Row, Statement
from haive_persistence.db.sql import Queries
from haive_persistence.errors import DecodeError, InvalidIdentifierError, NotFoundError
from haive_persistence.keys import Sealing

MAIN = "main"
MAX_NAME = 200  # characters
MAX_VIEWS = 64  # per thread, remembered


def check_name(what: str, name: object) -> str:
    """A name for a branch or tag. Raises InvalidIdentifierError if it cannot be one."""
    if not isinstance(name, str):
        raise InvalidIdentifierError(f"{what} must be a str, not {type(name).__name__}: {shown(name)}")
    check_text(what, name, most=MAX_NAME)
    if name == MAIN or name.startswith("@") or not name.isprintable() or name != name.strip():
        raise InvalidIdentifierError(
            f'{what} {shown(name)} cannot be used: "main" is the thread itself, and names have no "@" in '
            "front, no control characters, and no space around them"
        )
    return name


def name_key(codec: Sealing, name: str) -> int:
    """The 64-bit key by which a name is found; under the tenant's key where it seals."""
    blind = codec.blind("ref", name)
    return digest64("ref", name) if blind is None else int.from_bytes(blind[:8], "big", signed=True)


def _line_of_nameless(name: str) -> int:
    try:
        line_no = int(name[1:], 16)
    except ValueError:
        line_no = -1
    if not 0 <= line_no < 1 << 63 or line_name(line_no) != name:
        raise InvalidIdentifierError(f"there can be no branch {shown(name)}: names have no '@' in front")
    return line_no


class Names:
    """Resolves the names of one tenant's branches."""

    def __init__(self, context: TenantContext, queries: Queries) -> None:
        self._context = context
        self.queries = queries

    async def view(self, db: Db, address: Address) -> View | None:
        """The view of the address's branch; None for `main` of a thread in which it was never moved."""
        branch = None if address.branch == MAIN else address.branch
        log = self._context.cache.get(address.thread.bytes)
        if branch is None and (log is None or log.main_line is None):
            return None  # where nothing is known of the thread, reading it tells
        known: View | None = None if log is None else log.views.get(branch)
        if known is not None:
            return known
        return await self.ask(db, address)

    async def ask(self, db: Db, address: Address) -> View | None:
        """The same, from the database: what is remembered may be stale."""
        branch = None if address.branch == MAIN else address.branch
        return await self._context.with_all_keys(db, lambda: self.resolve(db, address, branch))

    async def resolve(self, db: Db, address: Address, branch: str | None) -> View | None:
        """Ask what a name means. Raises NotFoundError if there is no such branch."""
        codec = await self._context.codec(db)
        epoch, main_line, rows = await self.lookup(db, codec, address.thread, branch)
        if epoch is None:
            if branch is None:
                return None
            raise NotFoundError(f"there is no branch {branch!r}: there is no thread {address.thread_id!r}")
        log = self._context.cache.at_epoch(address.thread.bytes, epoch)
        log.main_line = main_line
        if branch is None and main_line is None:
            return None
        lines = _lines(codec, address.thread, rows)
        wanted = _wanted(branch, main_line)
        if wanted is not None and wanted != FIRST_LINE and not lines:
            raise NotFoundError(_missing(branch, address.thread_id))
        if branch is not None and wanted is None and not (lines and lines[0].name == branch):
            raise NotFoundError(_missing(branch, address.thread_id))
        if not lines or lines[-1].base is not None:
            lines.append(Line(FIRST_LINE))
        view = View(epoch, tuple(lines))
        remember_view(log, branch, view)
        return view

    async def view_in(
        self,
        tx: Executor,
        codec: Sealing,
        address: Address,
        epoch: int,
        main_line: int | None,
        branch: str | None,
        line_no: int | None = None,
    ) -> View:
        """The view of a branch, or of a line, in a transaction that has locked the thread."""
        params: dict[str, Any] = {"thread": address.thread, "name_key": None, "line": line_no}
        if line_no is None:
            if branch is None:
                params["line"] = main_line or FIRST_LINE
            elif branch.startswith("@"):
                params["line"] = _line_of_nameless(branch)
            else:
                params["name_key"] = name_key(codec, branch)
        rows = await tx.fetch_all(self.queries["resolve_branch"], params)
        lines = _lines(codec, address.thread, rows)
        if not lines and params["line"] != FIRST_LINE:
            raise NotFoundError(_missing(branch, address.thread_id))
        if not lines or lines[-1].base is not None:
            lines.append(Line(FIRST_LINE))
        return View(epoch, tuple(lines))

    async def lookup(
        self, db: Executor, codec: Sealing, thread: uuid.UUID, branch: str | None
    ) -> tuple[int | None, int | None, list[Row]]:
        """The thread's epoch, its main line, and the rows of the chain of lines."""
        params: dict[str, Any] = {"thread": thread, "name_key": None, "line": None}
        if branch is None:
            now = await db.fetch_one(self.queries["thread_now"], params, idempotent=True)
            if now is None or now[1] is None:
                return (None if now is None else now[0]), None, []
            params["line"] = now[1]
        elif branch.startswith("@"):
            params["line"] = _line_of_nameless(branch)
        else:
            params["name_key"] = name_key(codec, branch)
        names = ("thread_now", "resolve_branch")
        (now_rows, rows) = await db.batch(
            [Statement(self.queries[n], params) for n in names], idempotent=True
        )
        if not now_rows:
            return None, None, []
        return now_rows[0][0], now_rows[0][1], rows


def _wanted(branch: str | None, main_line: int | None) -> int | None:
    """The number of the line that is asked for; None if it is asked for by name."""
    if branch is None:
        return main_line
    return _line_of_nameless(branch) if branch.startswith("@") else None


def _missing(branch: str | None, thread_id: str) -> str:
    return (
        f"there is no branch {branch or MAIN!r} in thread {thread_id!r}: make it with create_branch(), or "
        "look at branches()"
    )


def _lines(codec: Sealing, thread: uuid.UUID, rows: Sequence[Row]) -> list[Line]:
    lines = [open_ref(codec, thread, row).line() for row in rows]
    for line, below in pairwise(lines):
        if line.base != below.no:
            raise DecodeError("the rows of a branch do not follow one another: its data is damaged")
    if lines and lines[-1].base not in (None, FIRST_LINE):
        raise DecodeError("the line that a branch starts from is missing: its data is damaged")
    return lines


def remember_view(log: ThreadLog, branch: str | None, view: View) -> None:
    """Remember what a name means at the log's epoch."""
    while len(log.views) >= MAX_VIEWS:
        log.views.pop(next(iter(log.views)), None)
    log.views[branch] = view
