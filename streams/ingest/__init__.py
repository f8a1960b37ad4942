"""The ingest service: admission, deduplication, partitioning, dead letters, recovery."""
