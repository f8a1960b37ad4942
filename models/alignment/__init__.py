"""Alignment: (policy, feedback) -> a better policy, and the gate it must pass."""
