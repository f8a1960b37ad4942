"""Durable batches on disk: write-ahead and Parquet files, and their compaction."""
