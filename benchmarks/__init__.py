"""Benchmarks: `python -m benchmarks NAME` prints a table, verdicts and what it ran on."""
