"""`Conflict`: where both sides of a merge changed the same thing differently, as data to store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from haive_persistence.checkpointer.versions.merge.values import MISSING
from haive_persistence.errors import InvalidInputError

Kind = Literal["edit/edit", "edit/delete", "add/add", "order", "driver"]
Side = Literal["ours", "theirs", "base"]

_KINDS = frozenset(get_args(Kind))
_SIDES: Final[tuple[Side, ...]] = ("base", "ours", "theirs")


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A place that both sides changed differently. The merged state has the value of `taken` there."""

    path: tuple[Any, ...]
    """The channel, then keys, ids of list items, fields or positions."""
    kind: Kind
    """edit/edit, edit/delete, add/add, order (both moved a list's items), or driver (it raised an error)."""
    base: Any = MISSING
    """The value in the merge base, MISSING if there was none. For "order": the ids of the items, in order."""
    ours: Any = MISSING
    theirs: Any = MISSING
    taken: Side = "ours"
    """The side whose value the merged state has."""
    after: tuple[Any, ...] = ()
    """The ids of list items that a missing one stands behind, the nearest first; empty for the beginning."""
    detail: str | None = None
    """The text of the error that a driver raised."""

    @property
    def channel(self) -> str:
        """The channel that the conflict is in."""
        return str(self.path[0])

    def to_dict(self) -> dict[str, Any]:
        """The conflict as plain data; the three values stay as they are, and a missing one is left out.

        Returns:
            A dict that the serialiser can store if it can store the values.
        """
        made: dict[str, Any] = {"path": list(self.path), "kind": self.kind, "taken": self.taken}
        made |= {side: value for side in _SIDES if (value := getattr(self, side)) is not MISSING}
        if self.after:
            made["after"] = list(self.after)
        if self.detail is not None:
            made["detail"] = self.detail
        return made

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conflict:
        """The conflict that `to_dict` wrote.

        Args:
            data: What `to_dict` returned, stored and read any number of times.

        Raises:
            InvalidInputError: It is not such a dict; read it from the merge checkpoint again.
        """
        path, kind, taken = data.get("path"), data.get("kind"), data.get("taken")
        if not isinstance(path, (list, tuple)) or not path or kind not in _KINDS or taken not in _SIDES:
            raise InvalidInputError("this is no conflict of a merge: pass what Conflict.to_dict returned")
        return cls(
            path=tuple(path),
            kind=cast(Kind, kind),
            taken=taken,
            after=tuple(data.get("after") or ()),
            detail=data.get("detail"),
            **{side: data.get(side, MISSING) for side in _SIDES},
        )

    def __str__(self) -> str:
        return f"{self.kind} at {'.'.join(map(str, self.path))}"
