"""The worked example of 0001: two chat turns, and the rows that they are stored as.

python -m tests.checkpointer.test_worked_example DSN     writes the example into the document again
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import psycopg
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from haive_persistence.checkpointer import Checkpointer
from haive_persistence.checkpointer.ids import thread_key, unpack_uuid
from haive_persistence.checkpointer.storage import manifest as mf
from haive_persistence.checkpointer.storage import row_format
from haive_persistence.checkpointer.storage.decoder import IdPiece
from haive_persistence.checkpointer.storage.piece_numbers import BLOCK_SIZE, IDS, LISTS, OTHER, start_of
from haive_persistence.codec import Codec
from haive_persistence.db import Database

DOCUMENT = Path(__file__).parents[2] / "docs" / "design" / "0001-storage-format.md"
BLOCK = re.compile(r"(?<=^## A worked example$)(.*?)^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TASK = "33333333-3333-4333-8333-33333333333{}"
PARTS = {OTHER: "B", IDS: "I", LISTS: "L"}


def chat(saver: Checkpointer) -> None:
    """Two turns as LangGraph stores them: input, what the user said, what the model said."""
    said: list[BaseMessage] = []
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    versions: dict[str, int] = {}
    step = -1
    for turn in (1, 2):
        message: BaseMessage = HumanMessage(f"question {turn} " + "?" * 200)
        start = {"__start__": {"messages": [message]}}
        config = put(saver, config, step, versions, {**start, "messages": said}, ["__start__"])
        for changed in (["__start__", "messages"], ["messages"]):
            step += 1
            saver.put_writes(config, [("messages", [message])], TASK.format(step))
            id_ = f"11111111-1111-4111-8111-11111111111{len(said)}"
            said = [*said, message.model_copy(update={"id": id_})]
            config = put(saver, config, step, versions, {"messages": said}, changed)
            message = AIMessage(f"answer {turn} " + "!" * 200)
        step += 1


def put(
    saver: Checkpointer,
    config: Any,
    step: int,
    versions: dict[str, int],
    values: dict[str, Any],
    changed: list[str],
) -> Any:
    versions.update(dict.fromkeys(changed, step + 2))
    checkpoint: Any = {
        "v": 4,
        "id": f"1f1e537d-cb5{step + 1}-613a-8000-5f4a9e8196aa",
        "ts": f"2026-11-20T10:00:0{step + 1}.000000+00:00",
        "channel_values": {channel: value for channel, value in values.items() if value},
        "channel_versions": dict(versions),
        "versions_seen": {},
        "updated_channels": changed,
    }
    metadata: Any = {"source": "input" if "__start__" in values else "loop", "step": step, "parents": {}}
    return saver.put(config, checkpoint, metadata, {channel: versions[channel] for channel in changed})


def number(no: int) -> str:
    """A piece number as the example shows it: its part of the block, and its place there."""
    offset = no % BLOCK_SIZE
    part = max(part for part in PARTS if offset >= start_of(part))
    return f"{PARTS[part]}{offset - start_of(part)}"


def pieces_of(manifest: Any, base: int) -> str:
    """The pieces of a manifest, or the value that it is."""
    if not isinstance(manifest, list) or not manifest:
        return repr(Codec().load(manifest) if isinstance(manifest, bytes) else manifest)
    runs = [
        number(start) if count == 1 else f"{number(start)}…{number(start + count - 1)}"
        for start, count in mf.piece_numbers(manifest, base, {})
    ]
    text = re.sub(r"\[(b'[^']*'), None\]", lambda found: f"[{packed_id(found[1])!r}, None]", str(manifest))
    return f"{text} = {' '.join(runs)}"


def packed_id(text: str) -> str:
    """The end of the id that stands in a manifest."""
    return unpack_uuid(ast.literal_eval(text))[-3:]


def shown(elements: Any) -> str:
    def one(value: Any) -> str:
        return (
            f"{type(value).__name__}({value.content[:10]!r}…)"
            if isinstance(value, BaseMessage)
            else repr(value)
        )

    if isinstance(elements, dict):
        return "{" + ", ".join(f"{k!r}: {shown(v)}" for k, v in elements.items()) + "}"
    return f"[{', '.join(map(one, elements))}]" if isinstance(elements, list) else one(elements)


def piece(no: int, data: bytes) -> str:
    if number(no).startswith("I"):
        return "ids: " + ", ".join(
            f"{number(of)} has {id_[-3:]!r}" for of, (id_, _) in IdPiece(no, data).ids.items()
        )
    if number(no).startswith("L"):
        return shown(Codec().load(data))
    try:
        template = row_format.open_template(data)
        return f"{type(template).__name__}{tuple(template)}"
    except Exception:  # it is a value, which has no other mark
        return shown(Codec().load(data))


def render(dsn: str, tenant: str) -> str:
    """The rows of the thread, as text."""
    codec = Codec()
    key = {"thread": thread_key(tenant, "t")}
    with psycopg.connect(dsn) as conn:
        pieces = conn.execute(
            "SELECT piece_no, payload FROM haive.piece WHERE thread_key = %(thread)s ORDER BY piece_no", key
        ).fetchall()
        writes = conn.execute(
            "SELECT checkpoint_id, write_no, payload FROM haive.pending_write"
            " WHERE thread_key = %(thread)s ORDER BY checkpoint_id, write_no",
            key,
        ).fetchall()
        checkpoints = conn.execute(
            "SELECT checkpoint_id, parent_id, body FROM haive.checkpoint"
            " WHERE thread_key = %(thread)s ORDER BY checkpoint_id",
            key,
        ).fetchall()
    names = {id_: f"c{at}" for at, (id_, *_) in enumerate(checkpoints, 1)}
    opened = {no: codec.unpack(payload, b"") for no, payload in pieces}
    lines = ["piece"]
    lines += [f"  {number(no):4} {piece(no, data)}" for no, data in opened.items()]
    for id_, parent, payload in checkpoints:
        body = row_format.open_body(codec.unpack(payload, b""))
        template = row_format.open_template(opened[body.template])
        assert isinstance(template, row_format.CheckpointNames)
        lines.append(
            f"checkpoint {names[id_]} below {names.get(parent, '–')}: template {number(body.template)}"
        )
        for channel, manifest in zip(template.values, body.values, strict=True):
            lines.append(f"  {channel:10} {pieces_of(manifest, body.base)}")
        for of, write_no, data in writes:
            if of == id_:
                write = row_format.open_write(write_no, of, codec.unpack(data, b""))
                (manifest,) = write.manifests
                lines.append(
                    f"  pending_write {number(write_no)}: messages {pieces_of(manifest, write.base)}"
                )
    return "\n".join(lines) + "\n"


def test_the_document_shows_what_is_stored(database: Database, dsn: str) -> None:
    chat(Checkpointer(database))
    found = BLOCK.search(DOCUMENT.read_text())
    assert found is not None
    assert found[2] == render(dsn, database.tenant)


def main(dsn: str) -> None:
    database = Database(dsn).for_tenant("worked-example")
    saver = Checkpointer(database)
    saver.delete_thread("t")
    chat(saver)
    text = render(dsn, database.tenant)
    page = DOCUMENT.read_text()
    DOCUMENT.write_text(BLOCK.sub(lambda found: f"{found[1]}```text\n{text}```", page))
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
