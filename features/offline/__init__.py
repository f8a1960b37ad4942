"""Offline: backfill, comparison with online rows, Spark, the point-in-time join."""
