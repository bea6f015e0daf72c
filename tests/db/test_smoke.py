from haive_persistence.db import Database, Query, Statement, run_sync

ONE = Query("SELECT %(a)s::text, %(b)s::int8")
TENANT = Query("SELECT current_setting('haive.tenant'), current_user::text")


def test_blocking(database: Database, tenant: str) -> None:
    db = database.blocking
    assert run_sync(db.fetch_all(ONE, {"a": "x", "b": 5})) == [("x", 5)]
    assert run_sync(db.fetch_one(TENANT))[0] == tenant
    assert run_sync(db.batch([Statement(ONE, {"a": "x", "b": 5}), Statement(TENANT)]))[0] == [("x", 5)]


async def test_async(database: Database, tenant: str) -> None:
    db = database.asynchronous
    assert await db.fetch_all(ONE, {"a": "x", "b": 5}) == [("x", 5)]
    row = await db.fetch_one(TENANT)
    assert row is not None
    assert row[0] == tenant
    assert row[1].startswith("haive_haive_")
    async with db.transaction() as tx:
        assert await tx.fetch_one(TENANT) == row


async def test_another_loop(database: Database) -> None:
    assert await database.asynchronous.fetch_all(ONE, {"a": "y", "b": 6}) == [("y", 6)]
