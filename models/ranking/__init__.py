"""Ranking: (user, candidates) -> P(action) per task, then the user's own fusion."""
