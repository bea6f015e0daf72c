"""Writes docs/reference.md from the code: settings, variables, errors, loggers. Run by `make reference`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from haive_persistence import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "haive_persistence"
PAGE = ROOT / "docs" / "reference.md"

SETTINGS = (
    ("PersistenceConfig", PACKAGE / "config.py"),
    ("EncryptionConfig", PACKAGE / "config.py"),
    ("CheckpointConfig", PACKAGE / "checkpointer" / "config.py"),
)
# Defaults that an expression makes: what a reader sees instead.
MADE = {
    ("PersistenceConfig", "connection_string"): "none",
    ("PersistenceConfig", "encryption"): "`None`",
    ("PersistenceConfig", "embedded_settings"): "`{}`",
    ("EncryptionConfig", "encryption_key"): "required",
    ("EncryptionConfig", "older_encryption_keys"): "`()`",
}
VARIABLE = re.compile(r"HAIVE_[A-Z][A-Z_]*[A-Z]")
HEAD = """# Reference

Made from the code by `make reference`; a test holds that it is up to date. What calls do is in their
docstrings: `help(Checkpointer.prune)`. How to use them is in the [guide](guide.md).
"""


def variables_of_code() -> set[str]:
    """Every variable that the package names, those of `_setting` included."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        found |= set(VARIABLE.findall(text))
        found |= {f"HAIVE_{name.upper()}" for name in re.findall(r'_setting\(\s*"(\w+)"', text)}
    return found


def settings(name: str, path: Path) -> list[str]:
    """The rows of one configuration class."""
    text = path.read_text()
    lines = text.splitlines()
    (cls,) = (n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == name)
    variables = variables_of_code()
    rows = [
        f"## `{name}`",
        "",
        "| setting | default | variable | what it does |",
        "|---|---|---|---|",
    ]
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        field = node.target.id
        if field.startswith("_"):
            continue
        of_environment = name != "CheckpointConfig" and f"HAIVE_{field.upper()}" in variables
        variable = f"`HAIVE_{field.upper()}`" if of_environment else ""
        of_postgres = f"Postgres' `{field}`, if it is set." if of_environment else "The same."
        about = comment_above(lines, node.lineno - 1) or of_postgres
        shown = MADE.get((name, field)) or f"`{default(node)}`"
        rows.append(f"| `{field}` | {shown} | {variable} | {about} |")
    return [*rows, ""]


def default(node: ast.AnnAssign) -> str:
    """The default as the code writes it, out of `_setting(name, default)` or `field(default=…)`."""
    value = node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "_setting":
        return ast.unparse(value.args[1])
    if isinstance(value, ast.Call):
        return next(ast.unparse(k.value) for k in value.keywords if k.arg == "default")
    return ast.unparse(value) if value else ""


def comment_above(lines: list[str], index: int) -> str:
    found: list[str] = []
    while index and (line := lines[index - 1].strip()).startswith("#:"):
        found.insert(0, line.removeprefix("#:").strip())
        index -= 1
    return " ".join(found).replace("|", "\\|")


def variables() -> list[str]:
    of_settings = {
        f"HAIVE_{node.target.id.upper()}"
        for name, path in SETTINGS[:2]
        for cls in ast.parse(path.read_text()).body
        if isinstance(cls, ast.ClassDef) and cls.name == name
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    others = sorted(variables_of_code() - of_settings)
    rows = [
        "## Variables",
        "",
        "A setting that is passed wins over its variable. Beside those of the settings above:",
        "",
    ]
    about = {
        "HAIVE_EMBEDDED_USER": "the account that the embedded server runs as when root starts it",
    }
    return [*rows, *(f"* `{name}`: {about[name]}" for name in others), ""]


def error_tree() -> list[str]:
    text = (errors.__doc__ or "").split("\n\n", 1)[1]
    return ["## Errors", "", "All are in `haive_persistence.errors`.", "", *text.rstrip().splitlines(), ""]


def loggers() -> list[str]:
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in re.findall(r'getLogger\("([\w.]+)"\)', path.read_text()):
            found.setdefault(name, set()).add(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    about = {
        "haive_persistence.checkpointer": "rows that cannot be read, in a listing",
        "haive_persistence.codec": "types that were not built, and why; the way messages are encoded",
        "haive_persistence.db": "what was found out about the server: poolers, roles",
        "haive_persistence.embedded": "starting, waiting for and stopping the embedded server",
        "haive_persistence.migrate": "migrations as they are applied",
        "haive_persistence.sql": "every round trip, with `echo_sql`",
        "haive_persistence.store": "expiry and vector indexes",
    }
    rows = ["## Loggers", "", "Nothing is configured: handlers and levels are the application's.", ""]
    return [*rows, *(f"* `{name}`: {about[name]}" for name in sorted(found)), ""]


def render() -> str:
    """The whole page."""
    parts = [settings(name, path) for name, path in SETTINGS]
    lines = [line for part in (*parts, variables(), error_tree(), loggers()) for line in part]
    return HEAD + "\n" + "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
