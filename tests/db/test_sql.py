"""The one reader of SQL files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from haive_persistence.db import load_queries, sql
from haive_persistence.db.protocol import Query
from haive_persistence.db.sql import Queries, in_schema, sql_root

ROOMS = sorted(path.stem for path in (sql_root() / "queries").glob("*.sql"))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "queries").mkdir()
    monkeypatch.setattr(sql, "sql_root", lambda: tmp_path)
    load_queries.cache_clear()
    yield tmp_path / "queries" / "made_up.sql"
    load_queries.cache_clear()


def test_named_queries_without_their_comments(files: Path) -> None:
    files.write_text(
        "-- About it all.\n\n-- name: one\n-- Says one.\nSELECT 1\n-- why\nFROM haive.x;\n\n-- name: two\nSELECT 2\n"
    )
    queries = load_queries("made_up")
    assert queries == {"one": 'SELECT 1\nFROM "haive".x', "two": "SELECT 2"}
    assert all(isinstance(text, Query) for text in queries.values())
    with pytest.raises(TypeError):
        queries["one"] = Query("")  # type: ignore[index]


def test_parts_stand_where_they_are_named(files: Path) -> None:
    files.write_text(
        "-- part: live\n-- Not over yet.\nends > now()\n\n-- part: mine\nowner = 1 AND /* live */\n\n"
        "-- name: one\n-- Says one.\nSELECT 1 FROM haive.x WHERE /* mine */;\n"
    )
    assert load_queries("made_up") == {"one": 'SELECT 1 FROM "haive".x WHERE owner = 1 AND ends > now()'}


def test_parts_of_another_file(files: Path) -> None:
    files.with_name("shared.sql").write_text(
        "-- part: live\n-- slot: now\nends > /* now */\n\n-- name: other\nSELECT 2;\n"
    )
    files.write_text("-- include: shared\n\n-- name: one\nSELECT 1 FROM haive.x WHERE /* live */;\n")
    queries = load_queries("made_up", "s")
    assert queries.render("one", now="now()") == 'SELECT 1 FROM "s".x WHERE ends > now()'
    assert list(queries.templates) == ["one"]


SLOTS = (
    "-- name: one\n-- slot: a\n-- slot: b\nSELECT /* a */ FROM haive./* b */;\n\n-- name: two\nSELECT 2;\n"
)


def test_slots_are_filled(files: Path) -> None:
    files.write_text(SLOTS)
    queries = load_queries("made_up")
    assert queries.render("one", a="x", b="y") == 'SELECT x FROM "haive".y'
    assert queries.render("one", a="x", b="y") is queries.render("one", a="x", b="y")
    assert queries.fill(b="y").render("one", a="x") == 'SELECT x FROM "haive".y'
    assert queries.fill(a="x", b="y") == {"one": 'SELECT x FROM "haive".y', "two": "SELECT 2"}


@pytest.mark.parametrize(
    "use",
    [
        lambda queries: queries.render("one", a="x"),
        lambda queries: queries.render("one", a="x", b="y", c="z"),
        lambda queries: queries.render("two", a="x"),
        lambda queries: queries.fill(c="z"),
        lambda queries: queries["one"],
        lambda queries: queries.fill(a="x")["one"],
        lambda queries: queries["three"],
        lambda queries: queries.render("three"),
        lambda queries: queries.part("one"),
    ],
)
def test_slot_that_is_unknown_or_left_out_is_an_error(files: Path, use: Callable[[Queries], object]) -> None:
    files.write_text(SLOTS)
    with pytest.raises((ValueError, KeyError), match=r"made_up\.sql"):
        use(load_queries("made_up"))


@pytest.mark.parametrize(
    "text",
    [
        "-- name: one\nSELECT 1 /* later */;\n",
        "-- name: one\nSELECT 1 /* of two words */;\n",
        "-- name: one\n-- slot: later\nSELECT 1 /* latter */ /* later */;\n",
        "-- name: one\n-- slot: later\nSELECT 1;\n",
        "-- part: later\n2\n-- name: one\n-- slot: later\nSELECT /* later */;\n",
        "-- name: one\nSELECT /* below */;\n-- part: below\n2\n",
        "-- part: open\n/* later */\n-- name: one\nSELECT 2;\n",
    ],
)
def test_mark_that_would_stay_in_the_text_is_an_error(files: Path, text: str) -> None:
    files.write_text(text)
    with pytest.raises(ValueError, match=r"made_up\.sql: "):
        load_queries("made_up")


def test_name_given_twice_is_an_error(files: Path) -> None:
    files.write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    with pytest.raises(ValueError, match="'one' twice"):
        load_queries("made_up")


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("SELECT * FROM haive.item", 'SELECT * FROM "s".item'),
        ("current_setting('haive.tenant', true)", "current_setting('haive.tenant', true)"),
        ("current_setting(''haive.tenant'')", "current_setting(''haive.tenant'')"),
        ("SELECT * FROM haive./* items */", 'SELECT * FROM "s"./* items */'),
        ("format('ALTER TABLE haive.%I', x)", "format('ALTER TABLE \"s\".%I', x)"),
        ('SELECT x.haive.y, my_haive.z, "haive".q', 'SELECT x.haive.y, my_haive.z, "haive".q'),
    ],
)
def test_schema_takes_the_place_of_the_prefix(text: str, moved: str) -> None:
    assert in_schema(text, "s") == moved


@pytest.mark.parametrize("room", ROOMS)
def test_every_query_has_a_comment_and_names_no_other_schema(room: str) -> None:
    text = (sql_root() / "queries" / f"{room}.sql").read_text()
    templates = load_queries(room, "elsewhere").templates
    for name, template in templates.items():
        assert not re.search(r"(?<!')\bhaive\.", template.text), name
    assert text.count("-- name:") == len(templates)


def test_wheel_and_checkout_are_both_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "haive_persistence"
    (package / "db").mkdir(parents=True)
    monkeypatch.setattr(sql, "__file__", str(package / "db" / "sql.py"))
    find = sql_root.__wrapped__
    assert find() == tmp_path / "sql"
    (package / "_sql").mkdir()
    assert find() == package / "_sql"
