"""Benchmarks: `python -m benchmarks NAME` prints a table, its bars and the machine."""
