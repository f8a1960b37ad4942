"""Reasoning: history -> trajectory. What may bring a silent user back, and why in that order.

Knows the dormant-user reasoner (`rolegen`). Does not know requests or Triton.
"""
