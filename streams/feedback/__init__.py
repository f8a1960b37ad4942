"""Feedback: impressions joined with the actions that carry their tokens."""
