"""Reasoning: history -> trajectory. The dormant-user reasoner; README.md is its model card.

Does not know requests or Triton.
"""
