"""Alignment: (policy, feedback) -> a better policy, and the gate that it must pass."""
