"""The settings of `index=`: which fields become vectors, of which type, and how distance is measured.

Pure; the statements are in store.sql, the tables are made by `schema`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

from langgraph.store.base import IndexConfig, PutOp, get_text_at_path, tokenize_path

from haive_persistence.embedding.embedder import Embedder
from haive_persistence.errors import ConfigError, InvalidInputError

MAX_FIELD_BYTES = 200

_OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
_OPCLASSES = {"cosine": "cosine_ops", "l2": "l2_ops", "inner_product": "ip_ops"}
#: The widest column, and the widest one an index takes, in dimensions.
_WIDEST = {"vector": (16_000, 2_000), "halfvec": (16_000, 4_000)}
_BYTES = {"vector": 4, "halfvec": 2}
_PAGE = 7_500
_SETTINGS = {"dims", "embed", "fields", "distance_type", "ann_index_config"}


class ANNIndexConfig(TypedDict, total=False):
    """The way the index is built. Unset parameters are pgvector's defaults."""

    kind: Literal["hnsw", "ivfflat", "flat"]
    """"flat" builds none: every search is exact."""
    vector_type: Literal["vector", "halfvec"]
    """"halfvec" keeps two bytes per dimension instead of four."""
    m: int
    ef_construction: int
    nlist: int


class PostgresIndexConfig(IndexConfig, total=False):
    """LangGraph's `index=`, with what Postgres adds to it."""

    ann_index_config: ANNIndexConfig
    distance_type: Literal["l2", "inner_product", "cosine"]


@dataclass(frozen=True)
class VectorIndex:
    """A checked `index=`."""

    dims: int
    vector_type: str
    distance: str
    kind: str
    parameters: tuple[tuple[str, int], ...]
    fields: tuple[tuple[str, Any], ...]
    embedder: Embedder

    @property
    def table(self) -> str:
        return f"store_{self.vector_type}_{self.dims}"

    @property
    def index(self) -> str:
        return f"{self.table}_{self.kind}_{self.distance}"

    def method(self, pgvector_schema: str) -> str:
        """The text that follows CREATE INDEX … USING."""
        opclass = f"{_quoted(pgvector_schema)}.{self.vector_type}_{_OPCLASSES[self.distance]}"
        built = f"{self.kind} (embedding {opclass})"
        options = ", ".join(f"{name} = {value}" for name, value in self.parameters)
        return f"{built} WITH ({options})" if options else built

    @property
    def fits_page(self) -> bool:
        return self.dims * _BYTES[self.vector_type] <= _PAGE

    @property
    def settings(self) -> dict[str, str]:
        """The values that `search_settings` binds; pgvector's advice for probes is the root of the lists."""
        lists = dict(self.parameters).get("lists", 100)
        return {"ef_search": "100", "max_scan_tuples": "10000", "probes": str(max(1, math.isqrt(lists)))}

    def score(self, distance: float) -> float:
        """Similarity as LangGraph's Postgres store tells it: greater is nearer."""
        if math.isnan(distance):  # the cosine of a vector of zeros
            return 0.0
        return 1 - distance if self.distance == "cosine" else -distance

    def slots(self, pgvector_schema: str) -> dict[str, str]:
        """The values of the slots in store.sql's queries for this table, type and distance."""
        schema = _quoted(pgvector_schema)
        return {
            "vectors": self.table,
            "vector_type": f"{schema}.{self.vector_type}",
            "distance": f"{schema}.{_OPERATORS[self.distance]}",
        }

    def texts(self, op: PutOp, value: Mapping[str, Any]) -> dict[str, str]:
        """Field name to text, for every text of an item that is to become a vector."""
        if op.index is False:
            return {}
        paths = self.fields if op.index is None else tokenized(op.index)
        found: dict[str, str] = {}
        for path, tokens in paths:
            texts = get_text_at_path(value, tokens)
            for no, text in enumerate(texts):
                found[path if len(texts) == 1 else f"{path}.{no}"] = text
        for name in found:
            if len(name.encode("utf-8", "surrogatepass")) > MAX_FIELD_BYTES or "\0" in name:
                raise InvalidInputError(
                    f"index: the path {name!r} is longer than {MAX_FIELD_BYTES} bytes, or holds NUL"
                )
        return found

    def to_text(self, vector: Iterable[float], text: str) -> str:
        """A vector as Postgres reads it. Raises InvalidInputError if it is not one of this index."""
        numbers = [float(number) for number in vector]
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        if len(numbers) != self.dims:
            raise InvalidInputError(
                f"the embedder returned {len(numbers)} dimensions for {shown!r}, index['dims'] is {self.dims}"
            )
        if not all(map(math.isfinite, numbers)):
            raise InvalidInputError(f"the embedder returned NaN or infinity for {shown!r}")
        return f"[{','.join(map(repr, numbers))}]"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def tokenized(fields: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """Paths with their steps, as `get_text_at_path` wants them."""
    return tuple((path, "$" if path == "$" else tokenize_path(path)) for path in fields)


def read_index(index: PostgresIndexConfig) -> VectorIndex:
    """Check `index=`. Raises ConfigError, naming the setting and what it may be."""
    _check_mapping("index", index)
    if unknown := index.keys() - _SETTINGS:
        raise ConfigError(f"index has {sorted(map(str, unknown))}: there are {', '.join(sorted(_SETTINGS))}")
    ann = cast("dict[str, Any]", index.get("ann_index_config") or {})
    _check_mapping("index['ann_index_config']", ann)
    kind = _one_of("ann_index_config['kind']", ann.get("kind", "hnsw"), ("hnsw", "ivfflat", "flat"))
    vector_type = _one_of("ann_index_config['vector_type']", ann.get("vector_type", "vector"), tuple(_WIDEST))
    distance = _one_of("distance_type", index.get("distance_type", "cosine"), tuple(_OPERATORS))
    dims = _whole("dims", index.get("dims"))
    widest = _WIDEST[vector_type][0 if kind == "flat" else 1]
    if dims > widest:
        raise ConfigError(
            f"index['dims'] = {dims}: {kind} on {vector_type} takes at most {widest}; "
            "halfvec takes 4000, kind 'flat' 16000"
        )
    names = {
        "hnsw": {"m": "m", "ef_construction": "ef_construction"},
        "ivfflat": {"nlist": "lists", "lists": "lists"},
    }
    known = {"kind", "vector_type", *names["hnsw"], *names["ivfflat"]}
    if unknown := ann.keys() - known:
        raise ConfigError(
            f"index['ann_index_config'] has {sorted(map(str, unknown))}: there are {', '.join(sorted(known))}"
        )
    parameters = {
        ours: _whole(f"ann_index_config[{theirs!r}]", ann[theirs])
        for theirs, ours in names.get(kind, {}).items()
        if ann.get(theirs) is not None
    }
    fields: Any = index.get("fields") or ["$"]
    fields = [fields] if isinstance(fields, str) else fields
    if not isinstance(fields, list | tuple) or not all(isinstance(field, str) for field in fields):
        raise ConfigError(f"index['fields'] is a list of paths, not {fields!r}")
    return VectorIndex(
        dims,
        vector_type,
        distance,
        kind,
        tuple(parameters.items()),
        tokenized(fields),
        Embedder(index.get("embed")),
    )


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"index: {name} = {value!r} is none of {', '.join(allowed)}")
    return str(value)


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'{name} is a {type(value).__name__}: give a dict, such as {{"dims": 1536, "embed": …}}'
        )


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f"index: {name} = {value!r} is no whole number above 0")
    return value
