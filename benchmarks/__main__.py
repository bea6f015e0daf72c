"""Runs every scenario: `python -m benchmarks` a shortened form (minutes), `--full` what the README quotes.

What else is given goes to every scenario: `--contenders postgres,haive`, `--random-text`, `--json FILE`.
One scenario by itself: `python -m benchmarks.bench_chat --help`.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence

Line = tuple[str, str]

SHORT: list[Line] = [
    ("bench_chat", "--turns 200"),
    ("bench_chat", "--turns 100 --async"),
    ("bench_chat", "--turns 100 --delta"),
    ("bench_supervisor", "--turns 60"),
    ("bench_supervisor", "--turns 60 --both"),
    ("bench_files", "--steps 60"),
    ("bench_sweep", "--graphs 10"),
    ("bench_processes", "--turns 60"),
    ("bench_many", "--threads 20000"),
    ("bench_raw", "--seconds 1 --rounds 3"),
    ("bench_raw", "--seconds 1 --rounds 3 --async"),
    ("bench_raw", "--seconds 1 --rounds 3 --one-thread --writers 8"),
    ("bench_roundtrips", "--rounds 5"),
    ("bench_store", ""),
    ("bench_diff", "--count 3"),
]
FULL: list[Line] = [
    ("bench_chat", ""),
    ("bench_chat", "--async"),
    ("bench_chat", "--delta"),
    ("bench_chat", "--random-text"),
    ("bench_supervisor", ""),
    ("bench_supervisor", "--both"),
    ("bench_files", ""),
    ("bench_sweep", ""),
    ("bench_processes", ""),
    ("bench_many", ""),
    ("bench_many", "--threads 500000"),
    ("bench_raw", ""),
    ("bench_raw", "--async"),
    ("bench_raw", "--one-thread"),
    ("bench_raw", "--one-thread --async"),
    ("bench_roundtrips", ""),
    ("bench_roundtrips", "--async"),
    ("bench_store", "--full"),
    ("bench_diff", ""),
]


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    rest = [argument for argument in argv if argument != "--full"]
    start = time.monotonic()
    for name, arguments in FULL if "--full" in argv else SHORT:
        print(f"\n$ python -m benchmarks.{name} {arguments} {' '.join(rest)}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main([*arguments.split(), *rest])
    print(f"\n{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main(sys.argv[1:])
