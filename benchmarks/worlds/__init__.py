"""Simulated worlds that only benchmarks use."""
