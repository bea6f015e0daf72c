"""A process reads the ancestors of a `DeltaChannel` once, and notices whatever changes among them."""

from __future__ import annotations

import random
from typing import Annotated, Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from haive_persistence import CheckpointConfig, errors
from haive_persistence.checkpointer import Checkpointer
from haive_persistence.db import Database
from tests.builders import RoundTrips, make_checkpoint, store, thread

SEALED = CheckpointConfig(encryption_key=bytes(range(32)))


def history_of(saver: Checkpointer, config: Any, *channels: str) -> Any:
    return saver.get_delta_channel_history(config=config, channels=channels or ["messages"])


def written(saver: Checkpointer, config: Any) -> list[str]:
    return [
        message.content
        for _, _, value in history_of(saver, config)["messages"]["writes"]
        for message in value
    ]


def add(saver: Checkpointer, config: Any, text: str, **values: Any) -> dict[str, Any]:
    saver.put_writes(config, [("messages", [HumanMessage(text)])], f"task of {text}")
    return store(saver, {"other": text, **values}, config)


def conversation(saver: Checkpointer, length: int) -> list[dict[str, Any]]:
    configs = [store(saver, {"messages": _DeltaSnapshot([HumanMessage("seed")])})]
    for number in range(length):
        configs.append(add(saver, configs[-1], f"w{number}"))
    return configs


def test_a_history_reads_the_ancestors_once(
    saver: Checkpointer, new_saver: Any, round_trips: RoundTrips
) -> None:
    configs = conversation(saver, 40)
    reader = new_saver()
    assert round_trips.of(lambda: history_of(reader, configs[-1])) == 2
    for number, config in enumerate(configs[:-1]):
        assert round_trips.of(lambda c=config: written(reader, c)) == 1  # type: ignore[misc]
        assert round_trips[-1].rows == 1
        assert written(reader, config) == [f"w{n}" for n in range(number)]


def test_what_two_reads_return_is_independent(saver: Checkpointer) -> None:
    config = conversation(saver, 5)[-1]
    for _ in range(4):
        found = history_of(saver, config)["messages"]
        assert found["seed"].value[0].content == "seed"
        assert [value[0].content for _, _, value in found["writes"]] == [f"w{n}" for n in range(5)]
        found["seed"].value[0].content = "changed"
        for _, _, value in found["writes"]:
            value[0].content = "changed"
            value.append("more")


def test_a_later_turn_reads_what_is_new(saver: Checkpointer, new_saver: Any) -> None:
    """Of another process too, which adds writes to the checkpoint that was the last."""
    other = new_saver()
    config = conversation(saver, 3)[-1]
    for number in range(3, 30):
        config = add(other if number % 3 else saver, config, f"w{number}")
        assert written(saver, config) == [f"w{n}" for n in range(number + 1)]
        assert written(saver, thread()) == [f"w{n}" for n in range(number + 1)]


def test_a_write_that_is_added_to_an_old_checkpoint(saver: Checkpointer, new_saver: Any) -> None:
    configs = conversation(saver, 6)
    assert written(saver, configs[-1])[-1] == "w5"
    new_saver().put_writes(configs[2], [("messages", [HumanMessage("late")])], "task of zzz")
    assert "late" in written(saver, configs[-1])
    assert "late" not in written(saver, configs[2])


def test_a_checkpoint_that_is_put_again(saver: Checkpointer, new_saver: Any) -> None:
    """With a value of its own, the ones before it do not count any more."""
    configs = conversation(saver, 6)
    assert len(written(saver, configs[-1])) == 6
    again = make_checkpoint({"messages": _DeltaSnapshot([HumanMessage("other seed")])})
    again["id"] = configs[3]["configurable"]["checkpoint_id"]
    new_saver().put(configs[2], again, {"source": "loop", "step": 1}, again["channel_versions"])
    found = history_of(saver, configs[-1])["messages"]
    assert found["seed"].value[0].content == "other seed"
    assert len(found["writes"]) == 3


def test_branches(saver: Checkpointer, new_saver: Any) -> None:
    """Below the checkpoint where they part, each has its own writes."""
    trunk = conversation(saver, 5)
    sides = {"left": trunk[3], "right": trunk[3]}
    for number in range(5):
        for side in sides:
            sides[side] = add(saver, sides[side], f"{side} {number}")
        for reader in (saver, new_saver()):
            for side, config in sides.items():
                assert written(reader, config)[6:] == [f"{side} {n}" for n in range(1, number + 1)]
            assert written(reader, trunk[-1])[:3] == ["w0", "w1", "w2"]


@pytest.mark.parametrize("key", [None, SEALED], ids=["plain", "sealed"])
@pytest.mark.parametrize("seed", range(4))
def test_a_process_with_a_memory_reads_what_a_new_one_reads(
    database: Database, seed: int, key: CheckpointConfig | None
) -> None:
    rng = random.Random(seed)
    savers = [Checkpointer(database, config=key) for _ in range(2)]
    configs = [store(savers[0], {"messages": _DeltaSnapshot([HumanMessage("seed")])})]
    for step in range(60):
        saver, config = rng.choice(savers), configs[-1] if rng.random() < 0.7 else rng.choice(configs)
        chance = rng.random()
        if chance < 0.02:
            saver.delete_thread("t")
            configs = [store(saver, {"messages": _DeltaSnapshot([HumanMessage("seed")])})]
        elif chance < 0.1:
            saver.put_writes(config, [("messages", [HumanMessage(f"alone {step}")])], f"task {step}")
        elif chance < 0.2:
            configs.append(store(saver, {"messages": _DeltaSnapshot([HumanMessage(f"seed {step}")])}, config))
        else:
            configs.append(add(saver, config, f"step {step}"))
        for config in [configs[-1], *rng.sample(configs, min(3, len(configs)))]:
            expected = history_of(Checkpointer(database, config=key), config, "messages", "other")
            for reader in savers:
                assert history_of(reader, config, "messages", "other") == expected


def _append(value: list[str], writes: list[list[str]]) -> list[str]:
    return [*(value or []), *(item for write in writes for item in write)]


class State(TypedDict, total=False):
    short: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=3)]
    long: Annotated[list[str], DeltaChannel(_append, snapshot_frequency=1000)]


def test_histories_beyond_many_snapshots(database: Database) -> None:
    builder = StateGraph(State)
    builder.add_node("add", lambda s: {"short": [f"a{len(s['short'])}"], "long": [f"b{len(s['long'])}"]})
    builder.add_edge(START, "add")
    app = builder.compile(checkpointer=Checkpointer(database))
    for number in range(70):
        app.invoke({"short": [f"{number}"], "long": [f"{number}"]}, thread())  # type: ignore[call-overload]
    new = builder.compile(checkpointer=Checkpointer(database))
    warm = [state.values for state in app.get_state_history(thread())]
    assert warm == [state.values for state in new.get_state_history(thread())]
    assert [len(values.get("long", [])) for values in warm if len(values.get("long", [])) % 2] == [
        *range(139, 0, -2)
    ]
    app.invoke({"short": ["end"], "long": ["end"]}, thread())  # type: ignore[call-overload]
    assert app.get_state(thread()).values["long"][-2:] == ["end", "b141"]


def test_pieces_that_were_evicted_are_fetched_again(saver: Checkpointer) -> None:
    config = conversation(saver, 5)[-1]
    before = history_of(saver, config)
    (log,) = saver._parts.context.cache._logs.values()
    log.evict_payloads()
    assert history_of(saver, config) == before


def test_a_sealed_write_that_is_cut_later_is_noticed(
    database: Database, admin: psycopg.Connection[Any]
) -> None:
    saver = Checkpointer(database, config=SEALED)
    config = conversation(saver, 5)[-1]
    assert len(written(saver, config)) == 5
    admin.execute(
        "DELETE FROM haive.pending_write WHERE (checkpoint_id, write_no) IN "
        "(SELECT checkpoint_id, write_no FROM haive.pending_write WHERE tenant_id = %s ORDER BY 1 LIMIT 1)",
        (database.tenant,),
    )
    with pytest.raises(errors.TamperedError):
        written(saver, config)


def test_rows_that_older_and_newer_transactions_replace(
    database: Database, admin: psycopg.Connection[Any], round_trips: RoundTrips
) -> None:
    """They are read again, though the numbers of the transactions that wrote them add up to what they did before."""
    saver = Checkpointer(database)
    replace = "UPDATE haive.pending_write SET payload = payload WHERE ctid = %s"
    with psycopg.connect(admin.info.dsn, password=admin.info.password) as older:
        (early,) = older.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()  # type: ignore[misc]
        for _ in range(50):
            admin.execute("SELECT pg_current_xact_id()")
        config = conversation(saver, 4)[-1]
        (first, xmin), (second, later) = admin.execute(
            "SELECT ctid, xmin::text::bigint FROM haive.pending_write WHERE tenant_id = %s ORDER BY write_no LIMIT 2",
            (database.tenant,),
        )
        written(saver, config)
        round_trips.of(lambda: written(saver, config))
        assert round_trips[-1].rows == 1  # all is as it was
        older.execute(replace, (first,))
    now = 0
    while now + early < xmin + later:
        with admin.transaction():
            (now,) = admin.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()  # type: ignore[misc]
            if now + early >= xmin + later:
                admin.execute(replace, (second,))
    assert round_trips.of(lambda: written(saver, config)) > 1
    assert written(saver, config) == ["w0", "w1", "w2", "w3"]
