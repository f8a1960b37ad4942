"""Durable batches on disk: segments, Parquet files and their compaction."""
