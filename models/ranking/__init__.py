"""Ranking: (user, candidates) -> P(action) per task, fused with the user's own weights."""
