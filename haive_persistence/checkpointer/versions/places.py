"""The line on which something is put: the branch's own, unless its parent is not shown there."""

from __future__ import annotations

from haive_persistence.checkpointer.context import ATTEMPTS, TenantContext
from haive_persistence.checkpointer.ids import ROOT_NS_KEY, Address, line_name, ns_key
from haive_persistence.checkpointer.storage.piece_index import ThreadLog
from haive_persistence.checkpointer.versions.lines import FIRST_LINE, View
from haive_persistence.checkpointer.versions.views import ViewChanged, Views
from haive_persistence.db.protocol import Db
from haive_persistence.errors import ConflictError, NotFoundError, ProtectedError

MAX_PLACED = 256  # checkpoints per thread whose line is remembered


class Places:
    """Places what one tenant's writers put."""

    def __init__(self, context: TenantContext, views: Views) -> None:
        self._context = context
        self._views = views

    async def place(self, db: Db, address: Address, new_id: bytes | None) -> None:
        """Set the line of an address to put at. `new_id`: the checkpoint that will be put there.

        A run that goes on while its branch is moved elsewhere stays where its last checkpoint is: its
        parent is not shown on the branch any more.

        Raises:
            ProtectedError: If the branch is protected.
        """
        for _ in range(ATTEMPTS):
            try:
                view = await self._view(db, address)
                if view is None:
                    address.put_on(FIRST_LINE, FIRST_LINE, None)
                    return
                view, home = await self._view_with_parent(db, address, view)
                if view.own.is_protected:  # as far as is known: it may be allowed again
                    view = await self._views.names.resolve(db, address, line_name(view.own.no)) or view
            except ViewChanged:
                continue
            if view.own.is_protected:
                raise ProtectedError(
                    f"branch {address.branch or 'main'!r} of thread {address.thread_id!r} is protected: run "
                    "on another branch, or let runs add to it with protect_branch(…, protected=False)"
                )
            self._put_on(address, view, home, new_id)
            return
        raise ConflictError(
            f"the branches of thread {address.thread_id!r} are changed over and over; try again",
            sqlstate=None,
        )

    async def _view(self, db: Db, address: Address) -> View | None:
        """The view of the branch. A run goes on beside its last checkpoint after the name was taken away.

        Raises:
            NotFoundError: If there is no such branch, and the checkpoint is not on one either.
        """
        try:
            return await self._views.names.view(db, address)
        except NotFoundError:
            id_ = address.checkpoint_id
            line_no = None if id_ is None else await self._line_in_thread(db, address, id_)
            if line_no in (None, FIRST_LINE):
                raise
            log = self._context.cache.get(address.thread.bytes)
            if log is not None and log.main_line == line_no:
                raise
            return await self._views.names.resolve(db, address, line_name(line_no))

    def _put_on(self, address: Address, view: View, home: int, new_id: bytes | None) -> None:
        own = view.own
        shown = None
        if home != own.no:
            place = view.place_of(home) or 0
            passed = any(line.is_passed for line in view.lines[:place])
            shown = frozenset[int]() if passed else own.base_writes
            if address.ns == "" and address.checkpoint_id != own.start:
                shown = None
        address.put_on(own.no, home, shown)
        log = self._context.cache.get(address.thread.bytes)
        if new_id is not None and log is not None:
            _remember(log, ns_key(address.ns), new_id, own.no)

    async def _view_with_parent(self, db: Db, address: Address, view: View) -> tuple[View, int]:
        """The view to put on, and the line of the parent (the view's own, if the parent is not stored)."""
        if address.checkpoint_id is None:
            return view, view.own.no
        home = await self._line_in_view(db, address, view, address.checkpoint_id)
        if home is not None:
            return view, home
        elsewhere = await self._line_in_thread(db, address, address.checkpoint_id)
        if elsewhere is None:
            return view, view.own.no
        there = await self._views.names.resolve(db, address, line_name(elsewhere))
        return (view if there is None else there), elsewhere

    async def _line_in_view(self, db: Db, address: Address, view: View, id_: bytes) -> int | None:
        ns = ns_key(address.ns)
        log = self._context.cache.get(address.thread.bytes)
        if (known := _known_line(log, view, ns, id_)) is not None:
            return known
        await self._views.get_tuple(db, address, view)
        return _known_line(self._context.cache.get(address.thread.bytes), view, ns, id_)

    async def _line_in_thread(self, db: Db, address: Address, id_: bytes) -> int | None:
        ns = ns_key(address.ns)
        log = self._context.cache.get(address.thread.bytes)
        if log is not None and (placed := log.placed.get((ns, id_))):
            return placed[-1]
        return await self._views.line_of(db, address, id_)


def _known_line(log: ThreadLog | None, view: View, ns: int, id_: bytes) -> int | None:
    """The nearest line of a view on which this process knows a checkpoint."""
    if log is None:
        return None
    lines = view.showing(id_, is_root=ns == ROOT_NS_KEY)
    placed = log.placed.get((ns, id_), ())
    return next((no for no in lines if no in placed or (ns ^ no, id_) in log.checkpoints), None)


def _remember(log: ThreadLog, ns: int, id_: bytes, line_no: int) -> None:
    while len(log.placed) >= MAX_PLACED:
        log.placed.pop(next(iter(log.placed)), None)
    log.placed[ns, id_] = (*(no for no in log.placed.get((ns, id_), ()) if no != line_no), line_no)
