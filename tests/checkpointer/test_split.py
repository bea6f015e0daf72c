"""Values to manifests and pieces and back, without a database."""

from __future__ import annotations

import copy
import enum
import random
import string
import sys
import types
import uuid
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send

from haive_persistence.checkpointer.storage import encoder
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage.decoder import Decoder
from haive_persistence.checkpointer.storage.encoder import Encoder
from haive_persistence.checkpointer.storage.piece_index import Batch, ThreadLog
from haive_persistence.checkpointer.storage.piece_numbers import IDS, part_of
from haive_persistence.checkpointer.thread_reader import ThreadReader
from haive_persistence.codec import Codec
from haive_persistence.keys import Sealing

CODEC = Codec()


class Thread:
    """A thread's pieces in memory, written and read as the saver does, by two 'processes'."""

    def __init__(self) -> None:
        self.stored: dict[int, bytes] = {}
        self.log = ThreadLog(1)
        self.sent_bytes = 0

    def write(self, value: Any) -> tuple[Any, int]:
        batch = Batch(self.log)
        manifest = Encoder(CODEC, batch).encode(value)
        for no, data in batch.send.items():
            assert self.stored.setdefault(no, data) == data
            self.sent_bytes += len(data)
        batch.commit()
        return mf.unpack(mf.pack(manifest)), batch.base

    def read(self, manifest: Any, base: int, log: ThreadLog | None = None) -> Any:
        """With `log` None: as a process that knows nothing."""
        log = log or ThreadLog(1)
        for no in mf.sequence_numbers(manifest, base):
            log.sequences[no] = mf.decode_sequence(self.stored[no])
        for start, count in mf.piece_numbers(manifest, base, log.sequences):
            for no in range(start, start + count):
                log.pieces.setdefault(no, self.stored[no])
        return Decoder(CODEC, log).decode(manifest, base)


def exactly(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(exactly(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(exactly, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, BaseMessage):
        return exactly(a.__dict__, b.__dict__)
    return bool(a == b)


uuids = st.uuids().map(str)


def besides(value: Any) -> Any:
    """What the messages in a value have besides their fields."""
    if isinstance(value, BaseMessage):
        return sorted(value.model_fields_set), value.__pydantic_extra__
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [besides(part) for part in parts]


def wreck(value: Any) -> None:
    """Change all that can be changed of a value that was read: nobody else may notice."""
    if isinstance(value, BaseMessage):
        wreck(value.content)
        wreck(value.additional_kwargs)
        value.content, value.id, value.surprise = "wrecked", "wrecked", True  # type: ignore[attr-defined]
        value.__pydantic_fields_set__.add("surprise")
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            wreck(part)
        value.clear()


text = (
    st.text(max_size=80)
    | st.text(alphabet="ab", min_size=100, max_size=1500)
    | st.lists(uuids | uuids.map(str.upper) | st.text(max_size=9), max_size=3).map("".join)
)
atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=50)
)
messages = st.builds(
    lambda cls, content, id_, kwargs: cls(content, id=id_, additional_kwargs=kwargs),
    st.sampled_from([HumanMessage, AIMessage]),
    text,
    st.none() | uuids | st.just("run-1"),
    st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.booleans(), max_size=2),
)
values = st.recursive(
    atoms | messages,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=20), inner, max_size=8),
    max_leaves=40,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=5))
def test_every_value_comes_back_exactly(history: list[Any]) -> None:
    """A sequence of values of one channel, each read warm and cold after all are written."""
    thread = Thread()
    written = [(copy.deepcopy(v), *thread.write(v)) for v in history]
    first = [thread.read(manifest, base) for _, manifest, base in written]
    assert all(exactly(found, value) for found, (value, _, _) in zip(first, written, strict=True))
    for _ in range(4):
        for before, (value, manifest, base) in zip(first, written, strict=True):
            found = thread.read(manifest, base, thread.log)
            assert exactly(found, value)
            assert besides(found) == besides(before)
            wreck(found)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_lists_under_edits(data: st.DataObject) -> None:
    """Appends, edits in place, removals, reorderings and repeats of messages."""
    thread = Thread()
    current: list[Any] = []
    written = []
    for _ in range(data.draw(st.integers(1, 12))):
        operation = data.draw(
            st.sampled_from(["append", "append", "edit", "remove", "swap", "repeat", "window", "ids"])
        )
        if operation == "append" or not current:
            current += data.draw(st.lists(messages, min_size=1, max_size=4))
        at = data.draw(st.integers(0, len(current) - 1))
        if operation == "edit":
            current[at].content += "."
        elif operation == "remove":
            del current[at]
        elif operation == "swap":
            current[0], current[at] = current[at], current[0]
        elif operation == "repeat":
            current.append(copy.deepcopy(current[at]))
        elif operation == "window":
            current = current[at:]
        elif operation == "ids":
            for message in current:
                message.id = message.id or str(uuid.uuid4())
        written.append((copy.deepcopy(current), *thread.write(list(current))))
    for value, manifest, base in written:
        assert exactly(thread.read(manifest, base), value)
    for _ in range(4):
        for value, manifest, base in written:
            found = thread.read(manifest, base, thread.log)
            assert exactly(found, value)
            wreck(found)


def test_an_append_only_list_is_one_range() -> None:
    thread = Thread()
    current: list[Any] = []
    for i in range(1000):
        current.append(HumanMessage(f"message {i} " + "x" * 100, id=f"m{i}"))
        manifest, _ = thread.write(list(current))
    assert len(mf.pack(manifest)) < 20
    assert len(thread.stored) == 1000


def test_a_list_of_many_ranges_is_frozen_and_stays_small() -> None:
    thread = Thread()
    rng = random.Random(1)
    current = [HumanMessage(f"message {i} " + "x" * 100, id=f"m{i}") for i in range(400)]
    written = []
    for i in range(300):
        current[rng.randrange(400)] = HumanMessage(f"new {i} " + "x" * 100, id=f"n{i}")
        written.append((list(current), *thread.write(list(current))))
    sizes = [len(mf.pack(m)) for _, m, _ in written]
    assert max(sizes) < 120
    for value, manifest, base in written[::25]:
        assert thread.read(manifest, base) == value


def test_one_edited_file_of_many_costs_that_file() -> None:
    thread = Thread()
    files = {f"src/module_{i}.py": "".join(random.choices(string.printable, k=5000)) for i in range(200)}
    thread.write(dict(files))
    before = thread.sent_bytes
    files["src/module_77.py"] += "# edited"
    manifest, base = thread.write(dict(files))
    assert thread.sent_bytes - before < 5500
    assert thread.read(manifest, base) == files


def test_the_last_message_of_a_list_has_its_id_in_the_manifest() -> None:
    """Two messages, a user's and a reply, then share an id piece. Another process goes on as this one would."""
    thread = Thread()
    said = [HumanMessage(f"said {n} " * 50) for n in range(4)]
    expected: list[BaseMessage] = []
    id_pieces = []
    reader = ThreadLog(1)
    for n, message in enumerate(said):
        thread.write({"update": [message]})
        message.id = str(uuid.UUID(int=n + 1))
        expected.append(message)
        manifest, base = thread.write(expected)
        assert thread.read(manifest, base) == expected
        assert thread.read(manifest, base, reader) == expected
        id_pieces.append(sum(part_of(no) == IDS for no in thread.stored))
    assert id_pieces == [0, 1, 1, 2]
    before = thread.sent_bytes
    thread.log = reader
    manifest, base = thread.write([*expected, HumanMessage("more", id="id")])
    assert thread.sent_bytes - before < 300  # the new message, and none of the others
    assert thread.read(manifest, base)[:4] == expected


def test_an_id_piece_is_not_named_before_it_is_stored() -> None:
    """Two first statements of a process are on their way at once; either may be the one that gets there."""
    thread = Thread()
    first, second = HumanMessage("first " * 50), HumanMessage("second " * 50)
    thread.write({"updates": [first, second]})
    first.id = "first"
    reader = ThreadLog(1)
    thread.read(*thread.write([first]), reader)
    for message in (first, second):
        thread.read(*thread.write({"updates": [message.model_copy(update={"id": None})]}), reader)
    second.id = "second"
    one, other = Batch(reader), Batch(reader)
    Encoder(CODEC, one).encode([first, second])
    manifest = Encoder(CODEC, other).encode([first, second])
    thread.stored |= other.send
    other.commit()
    assert thread.read(mf.unpack(mf.pack(manifest)), other.base) == [first, second]


def test_an_id_in_a_manifest_is_given_to_no_other_message_of_the_same_words() -> None:
    thread = Thread()
    first, second, third = (HumanMessage("the same words " * 20) for _ in range(3))
    thread.write([first])
    first.id = "first"
    assert thread.read(*thread.write([first])) == [first]
    assert thread.read(*thread.write([first, second])) == [first, second]
    second.id = "second"
    assert thread.read(*thread.write([second])) == [second]
    assert thread.read(*thread.write([third, first])) == [third, first]
    assert thread.read(*thread.write([first, second, third])) == [first, second, third]


def test_a_message_that_gets_its_id_later_is_stored_once() -> None:
    thread = Thread()
    message = HumanMessage("x" * 600)
    thread.write([message])
    before = thread.sent_bytes
    message.id = str(uuid.uuid4())
    manifest, base = thread.write([message])
    assert thread.sent_bytes - before < 60
    assert thread.read(manifest, base) == [message]
    # the same words said again without an id are another message
    again = [message, HumanMessage("x" * 600)]
    again[1].id = str(uuid.uuid4())
    manifest, base = thread.write(again)
    assert thread.read(manifest, base) == again


def test_a_message_that_gets_its_id_while_it_is_encoded_is_stored_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread, message, dump = Thread(), AIMessage("x" * 600), CODEC.dump

    def change_then_dump(part: Any) -> bytes:
        message.id = "given"  # LangGraph's reducer, while the node's writes are put in the background
        return dump(part)

    with monkeypatch.context() as patched:
        patched.setattr(CODEC, "dump", change_then_dump)
        thread.write([message])
    before = thread.sent_bytes
    assert thread.read(*thread.write([message])) == [message]
    assert thread.sent_bytes == before


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, True), (1, 1.0), (0.0, -0.0), ("a", ["a"]), ([], {}), (None, False), ("", None), ([1], [True])],
)
def test_a_change_of_type_only_is_a_change(before: Any, after: Any) -> None:
    """Python says 1 == True == 1.0; a message edited in place from one to the other has changed."""
    thread = Thread()
    message = AIMessage("x" * 300, id="m", additional_kwargs={"k": before})
    thread.write([message])
    message.additional_kwargs["k"] = after
    manifest, base = thread.write([message])
    read = thread.read(manifest, base)[0].additional_kwargs["k"]
    assert exactly(read, after)


def test_a_rollback_goes_on_while_readers_record_ids() -> None:
    """Readers never wait for a writer's lock: here one records an id whenever the rollback looks at one."""
    log = ThreadLog(1)

    class ReadMeanwhile(int):
        def __hash__(self) -> int:
            log.record_ids({len(log.given_ids): ("b", 1)})
            return int(self)

    log.record_ids({0: ("a", ReadMeanwhile(1)), 1: ("b", 1)})
    batch = Batch(log)
    own = batch.reserve()
    batch.give_ids({own: "c"})
    batch.rollback()
    assert own not in log.given_ids
    assert {0, 1} <= log.given_ids.keys()


def test_another_process_gave_an_id_while_a_list_was_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes store the same words with an id of their own; a reader finds the other's meanwhile."""
    thread, other = Thread(), ThreadLog(1)
    first, second = AIMessage("the same words " * 20), AIMessage("a reply " * 20)
    thread.read(*thread.write({"updates": [first, second]}), other)
    for message in (first, second):
        thread.read(*thread.write({"updates": [message]}), other)
    mine, second.id = first.model_copy(update={"id": "mine"}), "second"
    thread.log, log = other, thread.log
    theirs = thread.write(
        [first.model_copy(update={"id": "theirs"}), second, HumanMessage("more", id="more")]
    )
    thread.log = log
    dump = CODEC.dump

    def read_then_dump(part: Any) -> bytes:
        thread.read(*theirs, log)
        return dump(part)

    with monkeypatch.context() as patched:
        patched.setattr(CODEC, "dump", read_then_dump)
        manifest, base = thread.write([mine, HumanMessage("new " * 50, id="new"), second])
    expected = [mine, HumanMessage("new " * 50, id="new"), second]
    assert thread.read(manifest, base) == expected
    assert thread.read(manifest, base, log) == expected
    assert thread.read(*thread.write(expected)) == expected


def test_containers_inside_what_langgraph_wraps() -> None:
    """`Send` arguments and delta snapshots share the pieces of the messages they carry."""
    thread = Thread()
    conversation = [HumanMessage("x" * 300, id=f"m{i}") for i in range(50)]
    thread.write(conversation)
    before = len(thread.stored)
    for value in (Send("worker", {"messages": conversation, "n": 1}), _DeltaSnapshot(conversation)):
        manifest, base = thread.write([value] if isinstance(value, Send) else value)
        read = thread.read(manifest, base)
        assert read == ([value] if isinstance(value, Send) else value)
    assert len(thread.stored) <= before + 2


def test_numbers_lists_are_stored_in_slices() -> None:
    thread = Thread()
    embedding = [random.random() for _ in range(1536)]
    manifest, base = thread.write(embedding)
    assert len(thread.stored) <= 1536 // 64 + 1
    assert exactly(thread.read(manifest, base), embedding)
    before = len(thread.stored)
    thread.write([*embedding, 0.5])
    assert len(thread.stored) <= before + 1


def test_ids_of_a_long_thread_are_read_from_a_few_pieces() -> None:
    thread = Thread()
    messages: list[Any] = []
    for turn in range(300):
        messages.append(HumanMessage(f"turn {turn} " * 9))
        thread.write([messages[-1]])  # as a node returns it
        messages[-1].id = str(uuid.uuid4())  # as the reducer leaves it
        manifest, base = thread.write(messages)
    assert thread.read(manifest, base) == messages
    named = sum(count for _, count in mf.piece_numbers(manifest, base, thread.log.sequences))
    assert named < 300 + 70
    assert len(mf.pack(manifest)) < 40


def test_an_id_is_given_to_no_other_message_of_the_same_words() -> None:
    """Named by another process without its id, or with another, beside one whose id came in the same piece."""
    first, second = HumanMessage("first " * 30), HumanMessage("second " * 30)
    thread = Thread()
    thread.write([first, second])
    log = thread.write([first])
    both = thread.write([first.model_copy(update={"id": "1"}), second.model_copy(update={"id": "2"})])
    for id_ in (None, "other"):
        other = ThreadLog(1)
        thread.read(*log, other)
        thread.read(*both, other)
        process = Thread()
        process.stored, process.log = thread.stored, other
        mixed = [first.model_copy(update={"id": id_}), second.model_copy(update={"id": "2"})]
        written = process.write(mixed)
        assert [m.id for m in process.read(*written)] == [id_, "2"]


ids = st.sampled_from([None, None, "1", "1", "2", "3"])
said_in = st.lists(st.tuples(st.sampled_from("aab"), ids), max_size=4)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), said_in, st.booleans()), max_size=7), st.sampled_from([1, 2, 64])
)
@example(  # one process: the last has no id yet
    [(0, [("a", str(i)) for i in range(n)] + [("a", None)], False) for n in range(5)],
    64,
)
@example(  # the one text is given an id by two pieces, of two processes; a third names both
    [
        (0, [("a", None), ("b", None), ("c", None)], True),
        (0, [("a", "1"), ("b", "2")], False),
        (1, [("a", "3"), ("c", "4")], True),
        (2, [("a", "1"), ("b", "2"), ("c", "4")], True),
    ],
    64,
)
def test_messages_with_and_without_ids_in_several_processes(
    steps: list[tuple[int, list[tuple[str, str | None]], bool]], join: int
) -> None:
    """Two texts, without an id, with one, or with another, in any order; processes read each other's.

    `join`: from how many id pieces on they are joined.
    """
    processes = [Thread() for _ in range(3)]
    for process in processes:
        process.stored = processes[0].stored
    written: list[tuple[list[tuple[str, str | None]], Any, int]] = []

    def check(log: ThreadLog | None) -> None:
        for wanted, manifest, base in written:
            found = processes[0].read(manifest, base, log)
            assert [(m.content[0], m.id) for m in found] == wanted

    with mock.patch.object(encoder, "JOIN", join):
        for who, said, reads in steps:
            messages = [HumanMessage(text * 60, id=id_) for text, id_ in said]
            written.append((said, *processes[who].write(messages)))
            if reads:
                check(processes[1 - who].log)
                check(processes[2].log)
    for log in (None, *(process.log for process in processes)):
        check(log)


@pytest.mark.parametrize("in_a", [list, dict])
def test_a_class_that_is_loaded_later_is_built_from_then_on(
    in_a: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("colours_of_tests")
    module.Colour = enum.Enum("Colour", {"RED": "red"}, module="colours_of_tests")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "colours_of_tests", module)
    red = module.Colour.RED
    value = {"a": red, "b": "x" * 2000} if in_a is dict else [*[red] * 20, "x" * 2000]
    thread = Thread()
    manifest, base = thread.write(value)
    reader = ThreadLog(1)
    monkeypatch.delitem(sys.modules, "colours_of_tests")
    for _ in range(3):
        assert "red" in str(thread.read(manifest, base, reader))
        assert "Colour" not in str(thread.read(manifest, base, reader))
    monkeypatch.setitem(sys.modules, "colours_of_tests", module)
    assert thread.read(manifest, base, reader) == value


def test_a_few_uuids_stay_in_the_manifest() -> None:
    """As LangGraph's `parents` in the metadata of every checkpoint of a subgraph."""
    thread = Thread()
    parents = {"": str(uuid.UUID(int=7))}
    manifest, base = thread.write(parents)
    assert not thread.stored
    assert len(mf.pack(manifest)) < 30
    assert thread.read(manifest, base) == parents
    thread.write({"request": f"{uuid.UUID(int=8)}, which is more than a name: it has a text as well"})
    assert len(thread.stored) == 1


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(0, 1000), st.integers(-50, 50))
def test_items_and_rebase(numbers: list[int], base: int, by: int) -> None:
    items = mf.encode_items([base + n for n in numbers], base)
    flat = [n for start, count in mf.decode_items(items, base, {}) for n in range(start, start + count)]
    assert flat == [base + n for n in numbers]
    moved = mf.rebase([mf.LIST, items], by)
    assert list(mf.piece_numbers(moved, base - by, {})) == list(mf.piece_numbers([mf.LIST, items], base, {}))


@given(st.lists(st.integers(0, 40), max_size=60), st.lists(st.integers(0, 40), max_size=60))
def test_slices_of_a_frozen_sequence(numbers: list[int], frozen: list[int]) -> None:
    parts = list(mf.slices(numbers, 99, frozen))
    items = mf.encode_items(parts, 0)
    flat: list[int] = []
    for part in mf.decode_items(items, 0, {99: frozen}):
        flat += range(part[0], part[0] + part[1])
    assert flat == numbers
    assert mf.decode_sequence(mf.encode_sequence(numbers)) == numbers


def test_tool_messages_with_foreign_artifacts() -> None:
    """An artifact may be anything the serialiser knows: compared by what is stored."""
    thread = Thread()
    artifact = {"when": uuid.UUID(int=5)}
    message = ToolMessage("x" * 200, tool_call_id="c", id="m", artifact=artifact)
    manifest, base = thread.write([message])
    assert thread.read(manifest, base) == [message]
    message.artifact["when"] = uuid.UUID(int=6)
    manifest, base = thread.write([message])
    assert thread.read(manifest, base)[0].artifact["when"] == uuid.UUID(int=6)


def test_a_slice_that_changes_while_it_is_encoded_is_not_taken_for_what_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(first: str) -> list[dict[str, str]]:
        return [{"text": first}, *({"text": f"{no} " * 20} for no in range(63))]

    t = Thread()
    for first in ("new", "old", "new"):
        t.write(rows(first))
    t.log.grids.clear()
    value, dump = rows("old"), CODEC.dump

    def dump_then_change(part: Any) -> bytes:
        data = dump(part)
        value[0]["text"] = "new"  # a node goes on while its checkpoint is put in the background
        return data

    with monkeypatch.context() as patched:
        patched.setattr(CODEC, "dump", dump_then_change)
        t.write(value)
    assert t.read(*t.write(rows("old"))) == rows("old")


def test_what_is_evicted_while_a_reader_is_made_is_fetched() -> None:
    t = Thread()
    manifest, base = t.write(["x" * 2000])

    class Evicting:
        """The codec, while another thread of the process makes room."""

        @property
        def codec(self) -> Codec:
            t.log.evict_payloads()
            return CODEC

    assert t.log.pieces
    reader = ThreadReader(t.log, cast(Sealing, Evicting()), uuid.UUID(int=0), {})
    missing: set[int] = set()
    reader.add_missing(manifest, base, missing)
    t.log.record_pieces({no: t.stored[no] for no in missing}, reader.pieces)
    assert reader.decoder.decode(manifest, base) == ["x" * 2000]
