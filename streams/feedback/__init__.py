"""Feedback: the join of impressions with the actions that carry their tokens."""
