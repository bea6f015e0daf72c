"""Every decoder, fed with damaged and forged bytes for a minute: see `tests/fuzzing.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(seconds: int, *seed: str) -> None:
    command = [sys.executable, "-m", "tests.fuzzing", str(seconds), *seed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert int(done.stdout.split()[0]) > 100 * seconds


def test_decoders_survive_known_inputs() -> None:
    run(4, "1")


@pytest.mark.slow
def test_decoders_survive_a_minute() -> None:
    run(60)
