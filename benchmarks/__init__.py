"""Benchmarks: the incumbent savers and ours in one run, interleaved. See `python -m benchmarks --help`."""
