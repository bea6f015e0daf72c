"""`list` by metadata: signatures find what matches and lose nothing; the newest come from an index."""

from __future__ import annotations

import enum
import math
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haive_persistence import errors
from haive_persistence.checkpointer import CheckpointConfig, Checkpointer
from haive_persistence.checkpointer.metadata import _remembered, contains, filter_signature, signature
from haive_persistence.checkpointer.reads import Reads
from haive_persistence.db import Database, load_queries
from haive_persistence.db.protocol import Query, Statement, run_sync
from tests.builders import RoundTrips, make_checkpoint, store, thread

KEY = bytes(range(32))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.sampled_from([0.0, -0.0, 1.0, 2.0**70, math.inf, math.nan, "", "1", "True", "\ud800", "\x00"])
    | st.text(max_size=5)
)
names = st.text(max_size=3) | st.sampled_from(["step", "source"])
scalars |= st.sampled_from(["loop", "update"])
documents = st.dictionaries(names, scalars | st.lists(scalars, max_size=2), max_size=9)


def may_match(kept: dict[str, int | None], mask: dict[str, int]) -> bool:
    """The condition of the query's part `has_signature`."""
    if kept["signature_2"] is None:
        wanted = {"signature_1": mask["signature"]}
    else:
        wanted = {part: mask[part] for part in ("signature_1", "signature_2")}
    return all((kept[part] or 0) & bits == bits for part, bits in wanted.items())


@given(documents, st.dictionaries(st.text(max_size=3), scalars, max_size=2), st.sampled_from([None, KEY]))
def test_a_signature_has_the_bits_of_every_filter_that_matches(
    metadata: dict[str, Any], wanted: dict[str, Any], key: bytes | None
) -> None:
    kept = signature(metadata, key)
    for filter in (wanted, *({k: v} for k, v in metadata.items())):
        mask = filter_signature(filter, key)
        if mask is not None and contains(metadata, filter):
            assert may_match(kept, mask)


class Colour(str, enum.Enum):
    RED = "red"


def test_what_may_equal_anything_is_left_to_the_metadata() -> None:
    mask = filter_signature({"colour": "red"}, None)
    kept = signature({"colour": Colour.RED}, None)
    assert mask is not None
    assert may_match(kept, mask)


class Key(str, enum.Enum):
    USER = "user"


class PlainKey(enum.Enum):
    USER = "user"


@pytest.mark.parametrize("key", list(Key) + list(PlainKey))
def test_what_is_stored_under_an_enum_is_found_by_its_text(saver: Checkpointer, key: Any) -> None:
    for metadata in ({key: "u7"}, {"user": "u7"}):
        checkpoint = make_checkpoint({"n": 1})
        saver.put(thread(), checkpoint, metadata, checkpoint["channel_versions"])  # type: ignore[arg-type]
    _remembered.cache_clear()  # another process asks
    found = [t.metadata for t in saver.list(None, filter={"user": "u7"})]
    assert found == [{"user": "u7"}, {"user": "u7"}]


def test_keys_give_other_signatures() -> None:
    assert signature({"user": "ann"}, KEY) != signature({"user": "ann"}, None)
    assert signature({"user": "ann"}, KEY) != signature({"user": "ann"}, KEY[::-1])


@pytest.fixture(params=["clear", "sealed"])
def filled(request: pytest.FixtureRequest, database: Database) -> Checkpointer:
    config = CheckpointConfig(encryption_key=KEY if request.param == "sealed" else None)
    saver = Checkpointer(database, config=config)
    for number in range(60):
        store(saver, {"n": number}, thread(f"t{number}"), user=f"user {number % 20}", score=number / 2)
    return saver


def test_the_few_that_match_come_in_one_page(filled: Checkpointer, trips: RoundTrips) -> None:
    found = list(filled.list(None, filter={"user": "user 7"}))
    assert [t.metadata["user"] for t in found] == ["user 7"] * 3  # type: ignore[typeddict-item]
    assert [t.checkpoint["channel_values"]["n"] for t in found] == [47, 27, 7]
    # A second page only where one of the others happens to have the bits.
    assert trips.of(lambda: list(filled.list(None, filter={"user": "user 7"}, limit=3))) <= 2
    assert [t.checkpoint["id"] for t in filled.list(None, filter={"score": 3})] == [
        t.checkpoint["id"]
        for t in filled.list(None)
        if t.metadata["score"] == 3.0  # type: ignore[typeddict-item]
    ]
    assert list(filled.list(None, filter={"user": "nobody"})) == []
    assert list(filled.list(None, filter={"user": "user 7", "score": 999})) == []


def test_the_newest_come_first_whatever_their_ids(saver: Checkpointer) -> None:
    ids = [str(uuid.UUID(int=n << 66)) for n in range(100)] + [f"own id {n:03}" for n in range(30)]
    for number, id_ in enumerate(sorted(ids, key=hash)):
        checkpoint: Any = make_checkpoint({"n": number}, id=id_)
        saver.put(thread(f"t{number % 9}"), checkpoint, {}, checkpoint["channel_versions"])  # type: ignore[arg-type]
    listed = [t.checkpoint["id"] for t in saver.list(None)]
    texts = sorted((id_ for id_ in ids if id_.startswith("own")), reverse=True)
    assert listed == texts + sorted((id_ for id_ in ids if not id_.startswith("own")), reverse=True)
    before = [t.checkpoint["id"] for t in saver.list(None, before=thread(checkpoint_id=listed[70]), limit=40)]
    assert before == listed[71:111]


def test_a_filter_without_the_key_is_an_error(database: Database) -> None:
    store(Checkpointer(database, config=CheckpointConfig(encryption_key=KEY)), {"n": 1}, user="ann")
    with pytest.raises(errors.WrongKeyError):
        list(Checkpointer(database).list(None, filter={"user": "ann"}))
    with pytest.raises(errors.WrongKeyError):
        wrong = CheckpointConfig(encryption_key=KEY[::-1])
        list(Checkpointer(database, config=wrong).list(None, filter={"user": "ann"}))


def test_the_first_key_may_be_made_by_another_process(database: Database) -> None:
    config = CheckpointConfig(encryption_key=KEY)
    reader, writer = Checkpointer(database, config=config), Checkpointer(database, config=config)
    assert list(reader.list(None, filter={"user": "ann"})) == []
    store(writer, {"n": 1}, user="ann")
    assert len(list(reader.list(None, filter={"user": "ann"}))) == 1


def test_the_newest_are_found_by_an_index(filled: Checkpointer, admin: psycopg.Connection[Any]) -> None:
    query = (
        "EXPLAIN SELECT 1 FROM haive.checkpoint WHERE tenant_id = 't' AND listing_key <= 7"
        " ORDER BY listing_key DESC, checkpoint_id DESC LIMIT 10"
    )
    with admin.transaction():
        admin.execute("SET LOCAL enable_seqscan = off")
        assert "checkpoint_listing_idx" in str(admin.execute(query).fetchall())


def test_usual_metadata_takes_no_bits_and_is_found(saver: Checkpointer) -> None:
    parent: Any = thread()
    for step, source in enumerate(["input", "loop", "loop", "update", "loop"]):
        parent = store(saver, {"n": step}, parent, step=step, source=source)
    assert signature({"source": "loop", "step": 3, "parents": {}}, None) == signature({}, None)
    steps = {t.metadata["step"]: t for t in saver.list(None)}
    for filter, expected in (
        ({"step": 2}, [2]),
        ({"step": 2.0, "source": "loop"}, [2]),
        ({"source": "loop"}, [4, 2, 1]),
        ({"source": "update"}, [3]),
        ({"source": "update", "step": 4}, []),
    ):
        found = [t.metadata["step"] for t in saver.list(None, filter=filter)]
        assert found == expected
        assert [t.metadata["step"] for t in saver.list(thread(), filter=filter)] == expected
    assert len(steps) == 5


def test_many_pairs_take_two_columns_and_are_found(saver: Checkpointer) -> None:
    many = {f"key {n}": n for n in range(9)}
    store(saver, {"n": 1}, **many)
    assert None not in signature(many, None).values()
    for key, value in many.items():
        assert len(list(saver.list(None, filter={key: value}))) == 1
        assert list(saver.list(None, filter={key: value + 1})) == []


def test_a_filter_on_usual_metadata_takes_few_round_trips(saver: Checkpointer, trips: RoundTrips) -> None:
    """What only the metadata decides is read in pages that grow."""
    parent: Any = thread()
    for step in range(400):
        parent = store(saver, {"n": 1}, parent, step=step, source="loop")
    assert trips.of(lambda: list(saver.list(thread(), filter={"step": 3}))) <= 4


@pytest.mark.parametrize("tenants", [1, 40])
def test_a_listing_reads_no_more_than_its_page(
    database: Database, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, tenants: int
) -> None:
    """Before anything is analysed, and where a tenant is one of many: the planner takes its rows for few."""
    saver = Checkpointer(database)
    for number in range(200):
        checkpoint = make_checkpoint({"n": 1}, id=str(uuid.UUID(int=(number << 90) + 1)))
        one = saver if number % tenants == 0 else saver.for_tenant(f"{database.tenant} {number % tenants}")
        one.put(thread(f"t{number}"), checkpoint, {"user": f"u{number % 50}"}, {"n": 1})  # type: ignore[typeddict-unknown-key]
    sent: list[Statement] = []
    rows = Reads._rows

    async def remember(self: Reads, db: Any, listing: Any, params: Any) -> Any:
        sent.append(Statement(listing.query, params))
        return await rows(self, db, listing, params)

    monkeypatch.setattr(Reads, "_rows", remember)
    last = thread(checkpoint_id=str(uuid.UUID(int=(100 << 90) + 1)))
    for analysed in (False, True):
        if analysed:
            admin.execute("ANALYZE haive.checkpoint")
        for before in (None, last):
            sent.clear()
            assert len(list(saver.list(None, limit=2, before=before))) == 2
            assert checkpoints_read(database, sent[0]) <= 2 * 2


def checkpoints_read(database: Database, statement: Statement) -> int:
    """How many rows of checkpoints a listing's statement reads."""
    explain = Query(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.query}")
    order = Statement(load_queries("checkpointer")["prefer_order"])
    _, ((explained,),) = run_sync(database.blocking.batch([order, Statement(explain, statement.params)]))

    def count(node: dict[str, Any]) -> int:
        of_this = 0
        if node.get("Relation Name") == "checkpoint":
            of_this = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        return int(of_this + sum(map(count, node.get("Plans", ()))))

    return count(explained[0]["Plan"])
