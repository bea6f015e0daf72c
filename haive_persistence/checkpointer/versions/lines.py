"""Lines of checkpoints, and what a view of one shows. Pure: docs/design/0006-versions.md says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from haive_persistence.checkpointer.storage.row_format import Write

FIRST_LINE = 0  # on which every thread begins


class Line(NamedTuple):
    """A line: the number under which checkpoints are put, and where it starts.

    The first line starts with nothing: it has no `base`.
    """

    no: int
    name: str | None = None  # of the branch; None if it has none any more
    base: int | None = None  # the line on which the start was seen
    home: int = FIRST_LINE  # the line on which it is
    start: bytes = b""  # the checkpoint's id
    cut: bytes = b""  # of subgraphs, checkpoints are shown that are below
    base_writes: frozenset[int] = frozenset()  # pending writes that are shown at the start
    is_passed: bool = False  # the line it starts from had gone on from there
    is_protected: bool = False


class Levels(NamedTuple):
    """A view's lines as parameters of its queries: ids below which each is shown, None for all."""

    lines: list[int]
    root_belows: list[bytes | None]
    belows: list[bytes | None]


class View(NamedTuple):
    """The lines that a branch shows: its own, then the one that starts from, and so on."""

    epoch: int  # of the thread, when the name meant this
    lines: tuple[Line, ...]

    @property
    def own(self) -> Line:
        return self.lines[0]

    def levels(self) -> Levels:
        """All lines."""
        root_belows: list[bytes | None] = [None]
        belows: list[bytes | None] = [None]
        for line in self.lines[:-1]:
            root_belows.append(_lowest(root_belows[-1], line.start + b"\x00"))
            belows.append(_lowest(belows[-1], line.cut))
        return Levels([line.no for line in self.lines], root_belows, belows)

    def head_levels(self) -> Levels:
        """The lines that the latest checkpoint of the graph itself can be on: one of two, at any depth."""
        own = self.own
        if own.base is None:
            return Levels([own.no], [None], [None])
        below = own.start + b"\x00"
        return Levels([own.no, own.home], [None, below], [None, below])

    def showing(self, id_: bytes, *, is_root: bool) -> list[int]:
        """The lines on which a checkpoint of this id would be shown, nearest first."""
        lines, root_belows, belows = self.levels()
        bounds = zip(lines, root_belows if is_root else belows, strict=True)
        return [line_no for line_no, below in bounds if below is None or id_ < below]

    def place_of(self, line_no: int) -> int | None:
        """The distance of a line from the view's own; None if it is none of the view's."""
        return next((place for place, line in enumerate(self.lines) if line.no == line_no), None)


def _lowest(one: bytes | None, other: bytes) -> bytes:
    return other if one is None else min(one, other)


class Shown(NamedTuple):
    """A pending write with the line it is on."""

    line_no: int
    write: Write


def shown_writes(
    view: View,
    line_no: int,
    left_by: int | None,
    writes: Iterable[Shown],
    interrupts: Callable[[Write], bool],
) -> list[Write]:
    """The pending writes that a view shows at a checkpoint.

    Args:
        view: The view.
        line_no: The checkpoint's line.
        left_by: The line that leaves the checkpoint's line here; None if none does.
        writes: Those stored at the checkpoint.
        interrupts: Whether a write has an interrupt in it.
    """
    place = view.place_of(line_no) or 0
    leaving = None if left_by is None else view.place_of(left_by)
    kept: list[tuple[int, Write]] = []
    for shown in writes:
        at = view.place_of(shown.line_no)
        if at is None:
            continue
        if leaving is None or at <= leaving:
            if at <= place:
                kept.append((at, shown.write))
        elif shown.write.no in view.lines[leaving].base_writes:
            passed = any(line.is_passed for line in view.lines[leaving:at])
            if not passed or interrupts(shown.write):
                kept.append((at, shown.write))
    return _of_nearest(kept)


def _of_nearest(found: Sequence[tuple[int, Write]]) -> list[Write]:
    """The writes without those of a task that a nearer line ran again."""
    nearest: dict[bytes, int] = {}
    for at, write in found:
        if not write.upsert:
            nearest[write.task_id] = min(at, nearest.get(write.task_id, at))
    return [write for at, write in found if write.upsert or at == nearest[write.task_id]]
