"""Feast's side: its objects from our declarations, and its store classes."""
