"""Stored rows in columns: events aggregated into rows, rows finalized into values."""
