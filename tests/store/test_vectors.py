"""Items are found by meaning: all of them, in order, with filters; the embedder may fail."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import GetOp, Item, PutOp, SearchItem, SearchOp
from psycopg.conninfo import make_conninfo

from haive_persistence.config import PersistenceConfig
from haive_persistence.db import Database
from haive_persistence.errors import ConfigError, DatabaseError, InvalidInputError, TimedOutError
from haive_persistence.store import PostgresStore
from tests.builders import LETTERS, letters

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def meaning(database: Database) -> PostgresStore:
    return PostgresStore(database, index=LETTERS)  # type: ignore[arg-type]


def _keys(found: Sequence[SearchItem]) -> list[str]:
    return [item.key for item in found]


def test_the_nearest_come_first(meaning: PostgresStore) -> None:
    for key, text in {"zebra": "zany zebra", "dog": "dogs and dogs", "bird": "birds"}.items():
        meaning.put(("n",), key, {"text": text})
    found = meaning.search(("n",), query="zzz zebra")
    assert _keys(found)[0] == "zebra"
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)  # type: ignore[type-var]


def test_tasks_that_search_together_get_answers_of_their_own(meaning: PostgresStore) -> None:
    words = {"zebra": "zany zebra", "dog": "dogs and dogs", "bird": "birds", "llama": "llamas all"}

    async def together() -> list[Any]:
        for key, text in words.items():
            await meaning.aput(("n",), key, {"text": text})
        searches = [meaning.asearch(("n",), query=text, limit=1) for text in words.values()]
        return await asyncio.gather(
            *(meaning.aget(("n",), key) for key in words),
            *searches,
            *(meaning.asearch(("n",), filter={"text": text}) for text in words.values()),
            meaning.alist_namespaces(),
        )

    *items, namespaces = asyncio.run(together())
    assert [item.key if isinstance(item, Item) else item[0].key for item in items] == [*words] * 3
    assert namespaces == [("n",)]


@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_scores_are_the_incumbents(database: Database, vector_type: str, distance: str) -> None:
    index: Any = LETTERS | {"distance_type": distance, "ann_index_config": {"vector_type": vector_type}}
    store = PostgresStore(database, index=index)
    texts = ["abc", "abcabc", "xyz", ""]
    store.batch([PutOp(("n",), text or "empty", {"text": text}) for text in texts])
    (wanted,) = letters(["abcx"])
    found = {item.key: item.score for item in store.search(("n",), query="abcx")}
    for text in texts:
        (vector,) = letters([text])
        product = sum(a * b for a, b in zip(wanted, vector, strict=True))
        expected = {
            "cosine": product / math.hypot(*wanted) / math.hypot(*vector),
            "l2": -math.dist(wanted, vector),
            "inner_product": product,
        }[distance]
        assert found[text or "empty"] == pytest.approx(expected, abs=1e-3)


def test_a_vector_of_zeros_is_like_nothing(database: Database) -> None:
    store = PostgresStore(
        database, index={"dims": 2, "embed": lambda texts: [[float(len(t)), 0] for t in texts]}
    )
    store.batch([PutOp(("n",), "k", {}), PutOp(("n",), "other", {"a": "b"})])
    assert {item.score for item in store.search(("n",), query="x")} == {1.0}
    zero = PostgresStore(database, index={"dims": 2, "embed": lambda texts: [[0.0, 0.0] for _ in texts]})
    zero.put(("n",), "zero", {})
    assert {item.key: item.score for item in store.search(("n",), query="x")}["zero"] == 0.0


def test_fields_are_vectors_of_their_own(database: Database, sql: Sql) -> None:
    store = PostgresStore(database, index=LETTERS | {"fields": ["title", "parts[*].text", "deep.er"]})  # type: ignore[arg-type]
    store.put(
        ("n",), "a", {"title": "aaa", "parts": [{"text": "bbb"}, {"text": "ccc"}], "deep": {"er": "ddd"}}
    )
    store.put(("n",), "e", {"title": "eee"})
    store.put(("n",), "none", {"other": "fff"})
    fields = sql("SELECT key, field FROM haive.store_vector_27 WHERE tenant_id = %(tenant)s ORDER BY 1, 2")
    assert fields == [
        ("a", "deep.er"),
        ("a", "parts[*].text.0"),
        ("a", "parts[*].text.1"),
        ("a", "title"),
        ("e", "title"),
    ]
    for query in ("aaaa", "bbbb", "cccc", "dddd"):
        assert _keys(store.search(("n",), query=query)) == ["a", "e"]
    assert _keys(store.search(("n",), query="eeee")) == ["e", "a"]


def test_putting_again_replaces_the_vectors(meaning: PostgresStore, sql: Sql) -> None:
    count = "SELECT count(*) FROM haive.store_vector_27 WHERE tenant_id = %(tenant)s"
    meaning.put(("n",), "k", {"text": "aaa", "more": "bbb"}, index=["text", "more"])
    assert sql(count) == [(2,)]
    meaning.put(("n",), "k", {"text": "zzz"})
    assert sql(count) == [(1,)]
    (found,) = meaning.search(("n",), query="zzzz")
    assert found.score == pytest.approx(1, abs=0.01)
    meaning.put(("n",), "k", {"text": "zzz"}, index=False)
    assert sql(count) == [(0,)]
    assert meaning.search(("n",), query="zzzz") == []
    assert _keys(meaning.search(("n",))) == ["k"]
    meaning.put(("n",), "k", {"text": "zzz"}, index=["$"])
    assert len(meaning.search(("n",), query="zzzz")) == 1
    meaning.delete(("n",), "k")
    assert sql(count) == [(0,)]


def test_a_store_without_an_index_makes_vectors_out_of_date(
    meaning: PostgresStore, database: Database
) -> None:
    meaning.put(("n",), "k", {"text": "aaa"})
    PostgresStore(database).put(("n",), "k", {"text": "zzz"})
    assert meaning.search(("n",), query="aaa") == []
    meaning.put(("n",), "k", {"text": "zzz"})
    assert len(meaning.search(("n",), query="aaa")) == 1


def test_expired_items_are_not_found(meaning: PostgresStore, sql: Sql) -> None:
    meaning.put(("n",), "gone", {"text": "aaa"}, ttl=1)
    meaning.put(("n",), "live", {"text": "aab"}, ttl=1)
    sql("UPDATE haive.store_item SET expires_at = now() WHERE tenant_id = %(tenant)s AND key = 'gone'")
    sql("UPDATE haive.store_item SET expires_at = expires_at - interval '30 s' WHERE tenant_id = %(tenant)s")
    left = """
        SELECT expires_at > now() + interval '50 s'
        FROM haive.store_item WHERE tenant_id = %(tenant)s AND key = 'live'
    """
    assert _keys(meaning.search(("n",), query="aaa", refresh_ttl=False)) == ["live"]
    assert sql(left) == [(False,)]
    assert _keys(meaning.search(("n",), query="aaa")) == ["live"]
    assert sql(left) == [(True,)]
    assert meaning.sweep_ttl() == 1
    assert sql("SELECT key FROM haive.store_vector_27 WHERE tenant_id = %(tenant)s") == [("live",)]


# -- scopes, small and large ------------------------------------------------------------------


def _points(texts: Sequence[str]) -> list[list[float]]:
    """An embedding of texts that are coordinates."""
    return [[float(number) for number in text.split()] for text in texts]


POINTS: Any = {"dims": 3, "embed": _points, "fields": ["at"], "distance_type": "l2"}


def _cloud(seed: int, count: int) -> list[tuple[float, float, float]]:
    dice = random.Random(seed)
    return [(dice.gauss(0, 1), dice.gauss(0, 1), dice.gauss(0, 1)) for _ in range(count)]


CLOUD = _cloud(1, 2000)
TENTH = [no for no in range(2000) if no % 10 == 3]


def _at(point: Sequence[float]) -> str:
    return " ".join(f"{number:.6f}" for number in point)


@pytest.fixture(scope="module")
def all_points(module_database: Database) -> PostgresStore:
    """2,000 points, a tenth of which is in a namespace of its own."""
    store = PostgresStore(module_database.for_tenant(uuid.uuid4().hex), index=POINTS)
    for start in range(0, 2000, 500):
        store.batch(
            [
                PutOp(
                    ("cloud", "tenth" if no % 10 == 3 else "rest"), str(no), {"at": _at(CLOUD[no]), "no": no}
                )
                for no in range(start, start + 500)
            ]
        )
    return store


@pytest.fixture(params=["exact", "by index"])
def cloud(
    all_points: PostgresStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> PostgresStore:
    """The points, searched exactly, or by the index whatever the size of the scope."""
    if request.param == "by index":
        monkeypatch.setattr("haive_persistence.embedding.search.EXACT_VECTORS", 10)
    return PostgresStore(all_points.database, index=POINTS)


def _truth(wanted: Sequence[float], among: Sequence[int]) -> list[str]:
    return [str(no) for no in sorted(among, key=lambda no: math.dist(CLOUD[no], wanted))]


@pytest.mark.parametrize("limit", [1, 10, 50, 300])
def test_a_tenth_finds_all_of_its_own(cloud: PostgresStore, limit: int) -> None:
    """The incumbent returned 0 of 10 to a tenant with a tenth of the rows, and 40 of 50 or 100."""
    for wanted in _cloud(2, 5):
        found = _keys(cloud.search(("cloud", "tenth"), query=_at(wanted), limit=limit))
        assert found == _truth(wanted, TENTH)[:limit]


@pytest.mark.parametrize("limit", [10, 100, 1000])
def test_a_large_scope_is_searched_well(cloud: PostgresStore, limit: int) -> None:
    hits = 0
    for wanted in _cloud(3, 5):
        found = _keys(cloud.search(("cloud",), query=_at(wanted), limit=limit))
        assert len(set(found)) == limit
        hits += len(set(found) & set(_truth(wanted, range(2000))[:limit]))
    assert hits / (5 * limit) > 0.97


@pytest.mark.parametrize("rarity", [2, 20, 200, 1000])
def test_a_filter_finds_as_many_as_there_are(cloud: PostgresStore, rarity: int) -> None:
    threshold = 2000 - 2000 // rarity
    among = range(threshold, 2000)
    for wanted in _cloud(4, 5):
        found = cloud.search(("cloud",), query=_at(wanted), filter={"no": {"$gte": threshold}})
        assert _keys(found) == _truth(wanted, among)[:10]


def test_pages_lose_and_repeat_nothing(cloud: PostgresStore) -> None:
    """The incumbent returned one row at offset 20 and none from 30 on."""
    (wanted,) = _cloud(5, 1)
    pages = [
        cloud.search(("cloud", "tenth"), query=_at(wanted), limit=7, offset=at) for at in range(0, 210, 7)
    ]
    assert [key for page in pages for key in _keys(page)] == _truth(wanted, TENTH)


def test_items_at_the_same_distance_have_a_fixed_order(store: PostgresStore) -> None:
    same = PostgresStore(store.database, index=POINTS)
    same.batch([PutOp(("n",), f"{no:03}", {"at": "1 1 1"}) for no in range(100)])
    pages = [same.search(("n",), query="1 1 1", limit=9, offset=at) for at in range(0, 100, 9)]
    assert [key for page in pages for key in _keys(page)] == [f"{no:03}" for no in range(100)]


def test_any_limit(cloud: PostgresStore) -> None:
    found = cloud.search(("cloud", "tenth"), query="0 0 0", limit=2**62, offset=190)
    assert _keys(found) == _truth((0, 0, 0), TENTH)[190:]
    assert cloud.search(("cloud", "tenth"), query="0 0 0", offset=2**62) == []


def test_items_with_many_vectors_do_not_crowd_others_out(store: PostgresStore, trips: list[Any]) -> None:
    index = POINTS | {"fields": ["at[*]"]}
    crowd = PostgresStore(store.database, index=index)
    crowd.put(("n",), "crowd", {"at": [f"0 0 {no / 1000}" for no in range(500)]})
    crowd.batch([PutOp(("n",), f"{no:02}", {"at": [f"0 0 {no}"]}) for no in range(1, 21)])
    assert _keys(crowd.search(("n",), query="0 0 0", limit=15)) == [
        "crowd",
        *(f"{no:02}" for no in range(1, 15)),
    ]


def test_how_often_a_search_asks(all_points: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round trip in a small scope; in a large one two, and one while it is remembered to be large."""
    store = PostgresStore(all_points.database, index=POINTS)
    made: list[Any] = []
    store.database.hooks.append(made.append)
    try:
        store.search(("cloud",), query="0 0 0")  # looks for the table first
        made.clear()
        store.batch([SearchOp(("cloud",), query="0 0 0") for _ in range(4)])
        assert len(made) == 1
        monkeypatch.setattr("haive_persistence.embedding.search.EXACT_VECTORS", 10)
        made.clear()
        store.search(("cloud",), query="0 0 0")
        assert len(made) == 2
        store.search(("cloud",), query="1 0 0")
        assert len(made) == 3
    finally:
        store.database.hooks.remove(made.append)


def test_another_tenants_view_knows_the_table(meaning: PostgresStore, trips: list[Any]) -> None:
    meaning.put(("n",), "k", {"text": "abc"})
    trips.clear()
    other = meaning.for_tenant(f"{meaning.database.tenant}-2")
    assert other.search(("n",), query="abc") == []
    other.put(("n",), "k", {"text": "abc"})
    assert len(other.search(("n",), query="abc")) == 1
    assert len(trips) == 4  # the first finds nothing, and asks whether the tenant has a key
    assert other.database.tenant == f"{meaning.database.tenant}-2"


@pytest.mark.parametrize("kind", ["flat", "ivfflat"])
def test_other_kinds_of_index(database: Database, kind: str, sql: Sql) -> None:
    index = POINTS | {"distance_type": "cosine", "ann_index_config": {"kind": kind, "nlist": 4}}
    store = PostgresStore(database, index=index)
    store.batch([PutOp(("n",), str(no), {"at": _at(CLOUD[no])}) for no in range(200)])
    store.setup()
    names = [name for (name,) in sql("SELECT indexname FROM pg_indexes WHERE tablename = 'store_vector_3'")]
    assert ("store_vector_3_ivfflat_cosine" in names) == (kind == "ivfflat")
    expected = sorted(range(200), key=lambda no: -_cosine(CLOUD[no], (1, 2, 3)))[:5]
    assert _keys(store.search(("n",), query="1 2 3", limit=5)) == [str(no) for no in expected]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


# -- the embedder -----------------------------------------------------------------------------


class Model(Embeddings):
    """Counts its calls; texts to search for are embedded in another way than texts to store."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(f"documents {len(texts)}")
        return letters(texts)

    def embed_query(self, text: str) -> list[float]:
        self.calls.append("query")
        return letters([text.removeprefix("query: ")])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        self.calls.append(f"adocuments {len(texts)}")
        return letters(texts)

    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0)
        self.calls.append("aquery")
        return letters([text.removeprefix("query: ")])[0]


def _model_store(database: Database, embed: Any) -> PostgresStore:
    return PostgresStore(database, index=LETTERS | {"embed": embed})  # type: ignore[arg-type]


def test_a_model_is_called_once_for_the_texts_of_a_batch(database: Database) -> None:
    model = Model()
    store = _model_store(database, model)
    assert store.embeddings is model
    store.batch([PutOp(("n",), str(no), {"text": "same" if no % 2 else f"text {no}"}) for no in range(10)])
    assert model.calls == ["documents 6"]
    model.calls.clear()
    store.batch([SearchOp(("n",), query="query: a"), SearchOp(("n",), query="query: a"), GetOp(("n",), "1")])
    assert model.calls == ["query"]
    model.calls.clear()
    store.put(("n",), "other", {"no": "text"})
    store.put(("n",), "off", {"text": "text"}, index=False)
    store.search(("n",))
    assert model.calls == []


async def test_a_model_is_awaited_by_async_methods(database: Database) -> None:
    model = Model()
    store = _model_store(database, model)
    await store.aput(("n",), "k", {"text": "abc"})
    assert _keys(await store.asearch(("n",), query="query: abc")) == ["k"]
    assert model.calls == ["adocuments 1", "aquery"]


def test_a_function_is_called_once_for_everything(database: Database) -> None:
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> list[list[float]]:
        calls.append(texts)
        return letters(texts)

    store = _model_store(database, embed)
    store.batch(
        [PutOp(("n",), "k", {"text": "abc"}), SearchOp(("n",), query="x"), SearchOp(("n",), query="y")]
    )
    assert [sorted(call) for call in calls] == [["abc", "x", "y"]]


async def test_an_async_function_is_for_async_methods(database: Database) -> None:
    async def embed(texts: Sequence[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return letters(texts)

    store = _model_store(database, embed)
    await store.aput(("n",), "k", {"text": "abc"})
    assert _keys(await store.asearch(("n",), query="abc")) == ["k"]
    with pytest.raises(ConfigError, match="is an async function, which only the async methods"):
        store.search(("n",), query="abc")
    assert store.get(("n",), "k") is not None


def _fails(texts: Sequence[str]) -> list[list[float]]:
    raise OSError("the model is away")


@pytest.mark.parametrize(
    ("embed", "error", "says"),
    [
        (_fails, OSError, "the model is away"),
        (lambda texts: letters(texts)[:-1], InvalidInputError, "returned 1 vectors for 2 texts"),
        (
            lambda texts: [[1.0] for _ in texts],
            InvalidInputError,
            r"1 dimensions for 'abc', index\['dims'\] is 27",
        ),
        (lambda texts: [[math.nan] * 27 for _ in texts], InvalidInputError, "NaN or infinity for 'abc'"),
    ],
)
async def test_nothing_changes_when_the_embedder_fails(
    database: Database, embed: Any, error: type[Exception], says: str
) -> None:
    store = _model_store(database, embed)
    ops = [PutOp(("n",), "a", {"text": "abc"}), PutOp(("n",), "b", {"text": "xyz"}), PutOp(("n",), "c", {})]
    with pytest.raises(error, match=says):
        store.batch(ops)
    with pytest.raises(error, match=says):
        await store.abatch(ops)
    assert store.search(()) == []


def test_no_connection_is_held_while_embedding(database: Database) -> None:
    open_before: list[int] = []

    def embed(texts: list[str]) -> list[list[float]]:
        open_before.append(database._core.pools.blocking().slots.open - _idle(database))
        return letters(texts)

    store = _model_store(database, embed)
    store.put(("n",), "k", {"text": "abc"})
    store.search(("n",), query="abc")
    assert open_before == [0, 0]


def _idle(database: Database) -> int:
    return len(database._core.pools.blocking().slots._idle)


# -- settings and tables ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"embed": letters}, r"dims = None is no whole number"),
        ({"dims": 0, "embed": letters}, "dims = 0"),
        ({"dims": 3}, "embed must be provided"),
        (
            {"dims": 3, "embed": letters, "distance_type": "hamming"},
            "'hamming' is none of cosine, l2, inner_product",
        ),
        ({"dims": 3, "embed": letters, "ann_index_config": {"kind": "x; DROP"}}, "'x; DROP' is none of hnsw"),
        (
            {"dims": 3, "embed": letters, "ann_index_config": {"vector_type": "bit"}},
            "'bit' is none of vector, halfvec",
        ),
        ({"dims": 3, "embed": letters, "ann_index_config": {"m": "many"}}, "'many' is no whole number"),
        ({"dims": 3000, "embed": letters}, "hnsw on vector takes at most 2000; halfvec takes 4000"),
        ({"dims": 3, "embed": letters, "fields": [1]}, "is a list of paths"),
    ],
)
def test_settings_that_cannot_work_are_said(database: Database, index: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PostgresStore(database, index=index)


def test_wide_vectors(database: Database) -> None:
    def embed(texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text))] * 2000 + [1.0] * 1072 for text in texts]

    index: Any = {"dims": 3072, "embed": embed, "ann_index_config": {"vector_type": "halfvec", "m": 8}}
    store = PostgresStore(database, index=index)
    store.put(("n",), "k", {"a": 1})
    assert len(store.search(("n",), query="x")) == 1
    index = {"dims": 3072, "embed": embed, "ann_index_config": {"kind": "flat"}}
    store = PostgresStore(database, index=index)
    store.put(("n",), "k", {"a": 1})
    assert len(store.search(("n",), query="x")) == 1


def test_a_path_that_is_too_long(meaning: PostgresStore) -> None:
    with pytest.raises(InvalidInputError, match="longer than 200 bytes"):
        meaning.put(("n",), "k", {"a" * 300: "text"}, index=["a" * 300])


def test_an_unfinished_index_is_built_again(database: Database, dsn: str, sql: Sql) -> None:
    index: Any = {"dims": 5, "embed": lambda texts: [[1.0] * 5 for _ in texts]}
    PostgresStore(database, index=index).setup()
    name = "'haive.store_vector_5_hnsw_cosine'::regclass"
    sql(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {name}")
    PostgresStore(database, index=index).put(("n",), "k", {})
    valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = {name}"
    assert sql(valid) == [(True,)]
    sql("DROP INDEX haive.store_vector_5_hnsw_cosine")
    PostgresStore(database, index=index).setup()
    assert sql(valid) == [(True,)]


MANY_VECTORS = """
INSERT INTO haive.store_item (tenant_id, namespace, key, value, created_at, updated_at)
SELECT 'default', 'n.', i::text, '{}', now(), now() FROM generate_series(1, 3000) i;
INSERT INTO haive.store_vector_20 (tenant_id, namespace, key, field, item_updated_at, embedding)
SELECT 'default', 'n.', i::text, '$', now(),
       (SELECT array_agg(sin(i * j)::real) FROM generate_series(1, 20) j)::vector(20)
FROM generate_series(1, 3000) i;
DROP INDEX haive.store_vector_20_hnsw_cosine;
"""


def test_building_an_index_may_take_longer_than_a_statement(
    empty_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    index: Any = {"dims": 20, "embed": lambda texts: [[1.0] * 20 for _ in texts]}
    PostgresStore(empty_dsn, index=index).setup()
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute(MANY_VECTORS)
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET statement_timeout = '60ms'".encode())
    valid = (
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('haive.store_vector_20_hnsw_cosine')"
    )
    # Behind a transaction pooler the login's timeout counts; all goes on without the index.
    pooled = PostgresStore(PersistenceConfig(connection_string=empty_dsn, pooler="transaction"), index=index)
    pooled.put(("n",), "k", {"text": "a"})
    assert len(pooled.search(("n",), query="x", limit=3)) == 3
    assert "searching without an index" in caplog.text
    with pytest.raises(TimedOutError, match="statement_timeout"):
        pooled.setup()
    pooled.close()
    store = PostgresStore(
        PersistenceConfig(connection_string=empty_dsn, maintenance_work_mem="80MB", pooler="session"),
        index=index,
    )
    store.setup()
    store.close()
    with psycopg.connect(empty_dsn) as admin:
        assert admin.execute(valid).fetchall() == [(True,)]


def test_a_schema_that_was_dropped_is_made_again(empty_dsn: str) -> None:
    store = PostgresStore(empty_dsn, index=LETTERS)  # type: ignore[arg-type]
    store.put(("n",), "k", {"text": "abc"})
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute("DROP SCHEMA haive CASCADE")
    with pytest.raises(DatabaseError, match=r"run setup\(\)"):
        store.put(("n",), "k", {"text": "abc"})
    store.setup()
    store.put(("n",), "k", {"text": "abc"})
    assert [item.key for item in store.search(("n",), query="abc")] == ["k"]
    store.close()


@pytest.fixture
def old_pgvector(sql: Sql) -> Iterator[None]:
    ((version,),) = sql("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    sql("UPDATE pg_extension SET extversion = '0.8.0' WHERE extname = 'vector'")
    yield
    sql("UPDATE pg_extension SET extversion = %(version)s WHERE extname = 'vector'", version=version)


@pytest.mark.usefixtures("pgvector")
def test_a_pgvector_that_loses_rows_is_refused(
    meaning: PostgresStore, database: Database, old_pgvector: None
) -> None:
    PostgresStore(database, index=LETTERS | {"ann_index_config": {"kind": "flat"}}).setup()  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"0\.8\.0 loses rows from hnsw indexes when it vacuums: upgrade to 0\.8\.4"
    ):
        meaning.put(("n",), "k", {"text": "abc"})


async def test_many_start_at_once(dsn: str) -> None:
    """Eight processes' worth of stores meet a database that has no vector table."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS haive.store_vector_7")
    index: Any = {"dims": 7, "embed": lambda texts: [[1.0] * 7 for _ in texts]}
    stores = [PostgresStore(dsn, index=index) for _ in range(8)]
    await asyncio.gather(*(store.aput(("start",), str(no), {}) for no, store in enumerate(stores)))
    assert len(await stores[0].asearch(("start",), query="x")) == 8
    for store in stores:
        await store.aclose()


class Slow:
    """An async model that waits with what is slow until it is let go, and fails for what is broken."""

    def __init__(self) -> None:
        self.waits, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        if any("broken" in text for text in texts):
            raise RuntimeError("the model is out")
        if any("slow" in text for text in texts):
            self.waits.set()
            await self.go.wait()
        return letters(texts)


class Queries(Embeddings):
    """A model whose queries are answered when all of them are there."""

    def __init__(self, together: int) -> None:
        self.together = together
        self.asked = 0
        self.all = asyncio.Event()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return letters(texts)

    def embed_query(self, text: str) -> list[float]:
        return letters([text])[0]

    async def aembed_query(self, text: str) -> list[float]:
        self.asked += 1
        if self.asked == self.together:
            self.all.set()
        await asyncio.wait_for(self.all.wait(), 10)
        return letters([text])[0]


async def test_searches_asked_together_are_embedded_together(database: Database) -> None:
    store = PostgresStore(database, index=LETTERS | {"embed": Queries(8)})  # type: ignore[arg-type]
    await store.aput(("n",), "k", {"text": "something"})
    found = await asyncio.gather(*(store.asearch(("n",), query=f"question {no}") for no in range(8)))
    assert [len(items) for items in found] == [1] * 8


async def test_a_model_that_fails_for_one_call_fails_for_no_other(database: Database) -> None:
    store = PostgresStore(database, index=LETTERS | {"embed": Slow()})  # type: ignore[arg-type]
    await store.aput(("n",), "there", {"text": "text"})
    results = await asyncio.gather(
        store.aget(("n",), "there"),
        store.aput(("n",), "good", {"text": "fine"}),
        store.aput(("n",), "bad", {"text": "broken"}),
        store.aput(("n",), "plain", {"text": "broken"}, index=False),
        return_exceptions=True,
    )
    assert [type(result).__name__ for result in results] == ["Item", "NoneType", "RuntimeError", "NoneType"]
    assert [bool(await store.aget(("n",), key)) for key in ("good", "bad", "plain")] == [True, False, True]


@pytest.mark.parametrize("later", ["put", "delete"])
async def test_the_last_of_two_writes_of_an_item_wins(database: Database, later: str) -> None:
    """Though the first waits for its vectors."""
    model = Slow()
    store = PostgresStore(database, index=LETTERS | {"embed": model})  # type: ignore[arg-type]
    await store.aput(("n",), "k", {"text": "first"})
    slow = asyncio.create_task(store.aput(("n",), "k", {"text": "slow"}))
    await model.waits.wait()
    last = asyncio.create_task(
        store.aput(("n",), "k", {"new": 1}) if later == "put" else store.adelete(("n",), "k")
    )
    await store.aput(("n",), "other", {"text": "this one waits for nobody"})
    assert (await store.aget(("n",), "k")).value == {"text": "first"}  # type: ignore[union-attr]
    model.go.set()
    await asyncio.gather(slow, last)
    found = await store.aget(("n",), "k")
    assert (found and found.value) == ({"new": 1} if later == "put" else None)


async def test_who_stops_waiting_for_its_turn_does_not_let_others_overtake(database: Database) -> None:
    model = Slow()
    store = PostgresStore(database, index=LETTERS | {"embed": model})  # type: ignore[arg-type]
    await store.aput(("n",), "k", {"v": 0})
    first = asyncio.create_task(store.aput(("n",), "k", {"text": "this is slow"}))
    await model.waits.wait()
    second = asyncio.create_task(store.aput(("n",), "k", {"v": 2}))
    await asyncio.sleep(0)
    second.cancel()
    third = asyncio.create_task(store.aput(("n",), "k", {"v": 3}))
    await asyncio.wait([second])
    model.go.set()
    await asyncio.gather(first, third)
    found = await store.aget(("n",), "k")
    assert found is not None
    assert found.value == {"v": 3}


def test_stores_of_several_schemas_are_used_for_the_first_time_together(dsn: str) -> None:
    """Each makes the extension, which is the database's."""
    name = f"first_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        try:
            fresh = make_conninfo(dsn, dbname=name)
            databases = [
                Database(PersistenceConfig(connection_string=fresh, schema=f"app{i}")) for i in range(4)
            ]
            for database in databases:
                database.setup()
            barrier = threading.Barrier(4)

            def put(database: Database) -> None:
                barrier.wait()
                PostgresStore(database, index=LETTERS).put(("n",), "k", {"text": "first"})  # type: ignore[arg-type]

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(put, databases))
            for database in databases:
                database.close()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
