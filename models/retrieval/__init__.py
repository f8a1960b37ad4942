"""Retrieval: from a user's history to candidates."""
