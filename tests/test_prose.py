"""The vocabulary of code, SQL and docs is the field's, and a docstring begins with what is done or returned."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import haive_persistence

ROOT = Path(__file__).parents[1]
CODE = sorted((ROOT / "haive_persistence").rglob("*.py"))
SQL = sorted((ROOT / "sql").rglob("*.sql"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

#: What is written instead: again; release, evict; refresh; no process, no one; also; passed to; is set.
POETRY = re.compile(
    r"\b(anew|let(?:s|ting)?[ _]go|look(?:s|ing)?[ _]again|nobody(?!\x22)|besides|given to|(?:is|are) told)\b",
    re.IGNORECASE,
)
QUESTION = re.compile(r"(What|Who|Whose|Whom|Where|How)\b")


def prose_of_code(text: str) -> Iterator[tuple[int, str]]:
    """The names, comments and strings of Python code, with their lines."""
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in strings | {tokenize.COMMENT}:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line
        elif token.type == tokenize.NAME:
            yield token.start[0], token.string


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page outside its code blocks."""
    in_block = False
    for no, line in enumerate(text.splitlines(), 1):
        in_block ^= line.startswith("```")
        if not in_block:
            yield no, line


def prose_of_sql(text: str) -> Iterator[tuple[int, str]]:
    yield from enumerate(text.splitlines(), 1)


def findings(path: Path) -> list[str]:
    text = path.read_text()
    prose = {".py": prose_of_code, ".sql": prose_of_sql, ".md": prose_of_page}[path.suffix](text)
    found = [f"{path}:{no}: {match[0]!r}" for no, line in prose for match in POETRY.finditer(line)]
    if path.suffix == ".py":
        found += [f"{path}:{no}: begins with {word!r}" for no, word in questions(ast.parse(text))]
    return found


def questions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The docstrings, and the comments of attributes that document them, that begin with a question."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match = QUESTION.match(ast.get_docstring(node) or "")
            if match:
                yield getattr(node, "lineno", 1), match[0]


#: Inherited from LangGraph or Python, whose docstrings are written for users.
INHERITED = {
    *(f"Checkpointer.{name}" for name in ("aget", "config_specs", "get", "serde", "with_allowlist")),
    *(f"PersistenceError.{name}" for name in ("add_note", "args", "with_traceback")),
    *(
        f"PostgresStore.{prefix}{name}"
        for prefix in ("", "a")
        for name in ("delete", "get", "list_namespaces")
    ),
    *(f"PostgresStore.{prefix}{name}" for prefix in ("", "a") for name in ("put", "search")),
    *(f"PostgresStore.{name}" for name in ("supports_ttl", "ttl_config")),
}


@pytest.mark.parametrize("path", [*CODE, *SQL, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_the_fields(path: Path) -> None:
    found = findings(path)
    assert not found, "\n".join(found)


def public_operations() -> Iterator[tuple[str, object]]:
    """What a user of the public names may call, as `Class.method`."""
    for name in haive_persistence.__all__:
        cls = getattr(haive_persistence, name)
        if not isinstance(cls, type):
            continue
        for attribute in dir(cls):
            if not attribute.startswith("_") and not is_data(cls, attribute):
                yield f"{name}.{attribute}", inspect.getattr_static(cls, attribute)


def is_data(cls: type, name: str) -> bool:
    """True for a dataclass's field, and for a class attribute, which the docstring of the class explains."""
    return name in {**getattr(cls, "__dataclass_fields__", {}), **cls.__annotations__}


def test_public_operations_have_a_docstring_of_their_own() -> None:
    """help(Checkpointer.prune) tells a user what it does here, not what LangGraph asks of implementers."""
    missing = set()
    for name, attribute in public_operations():
        function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", None) or attribute
        function = getattr(function, "func", function)  # a cached_property's
        ours = getattr(function, "__module__", "").startswith("haive_persistence")
        if not (ours and getattr(function, "__doc__", None)):
            missing.add(name)
    assert missing <= INHERITED, sorted(missing - INHERITED)
