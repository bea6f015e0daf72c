"""A clone installs the same versions at any date: what is pinned, and that the stated bounds are what is tested."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import haive_persistence

ROOT = Path(__file__).parents[1]
LOCKS = {"locked": ROOT / "requirements" / "locked.txt", "lowest": ROOT / "requirements" / "lowest.txt"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9_.-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>[^\\]+))? \\$", re.MULTILINE
)


def environment(python: str, extra: str = "") -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.9", "extra": extra}


def stated(extras: tuple[str, ...], python: str) -> list[Requirement]:
    """The requirements of the installed package, as pyproject.toml states them."""
    texts = metadata("haive-persistence").get_all("Requires-Dist") or []
    found = [Requirement(text) for text in texts]
    return [
        one
        for one in found
        if one.name != "haive-persistence"
        and (one.marker is None or any(one.marker.evaluate(environment(python, e)) for e in ("", *extras)))
    ]


def pinned(lock: str, python: str) -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for match in PIN.finditer(LOCKS[lock].read_text()):
        one = Requirement(f"x ; {match['marker']}") if match["marker"] else Requirement("x")
        if one.marker is None or one.marker.evaluate(environment(python)):
            assert match["name"] not in pins, f"{match['name']} is pinned twice for Python {python}"
            pins[canonicalize_name(match["name"])] = Version(match["version"])
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("lock", "extras"),
    [("locked", ("binary", "embedded", "test", "dev")), ("lowest", ("binary", "embedded", "test"))],
)
def test_every_direct_requirement_is_pinned(lock: str, extras: tuple[str, ...], python: str) -> None:
    pins = pinned(lock, python)
    for one in stated(extras, python):
        assert pins[canonicalize_name(one.name)] in one.specifier, f"{one} in {lock}: run `make lock`"


def test_lowest_bounds_are_the_versions_that_are_tested() -> None:
    """A bound that no Python is tested with is a claim: raise it to what is."""
    for one in stated((), "3.10"):
        floors = [Version(part.version) for part in one.specifier if part.operator == ">="]
        lowest = min(pinned("lowest", python)[canonicalize_name(one.name)] for python in PYTHONS)
        assert [lowest] == floors, f"{one}: the lowest version tested is {lowest}"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_address(lock: str) -> None:
    text = LOCKS[lock].read_text()
    for block in re.split(r"\n(?=\S)", text):
        assert block.startswith("#") or "--hash=sha256:" in block, block
    assert "://" not in text
    assert "--index" not in text


def test_no_tracked_file_names_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    address = re.compile(r"https?://[^\s'\"]*(?:/simple\b|pypi\.org|pythonhosted|registry\.npmjs)")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix not in {".zdict", ".hex"} and path.is_file():
            assert not address.search(path.read_text()), name


def test_the_version_has_one_place() -> None:
    installed = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert installed.stdout.strip() == haive_persistence.__version__
    assert f"## {haive_persistence.__version__}" in (ROOT / "CHANGELOG.md").read_text()
