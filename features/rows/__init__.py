"""Stored rows: events folded into them, values finalized from them."""
