"""The event log: every admitted event once, in Parquet by epoch, partition and offset.

Knows files and stamps. Does not know features or feedback.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from streams.delivery import Delivery


class EventLog:
    """The log under one folder. `append` is a `BatchHandler`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def append(self, delivery: Delivery) -> None:
        """Makes the batch durable; a stamp that the log holds changes nothing."""
        raise NotImplementedError

    def scan(self) -> pl.LazyFrame:
        """EVENT_SCHEMA's columns plus epoch, partition, offset, row; duplicates marked."""
        raise NotImplementedError

    def read(
        self,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        kinds: Sequence[str] | None = None,
        duplicates: bool = False,
    ) -> pl.DataFrame:
        """`since_ms <= event_time_ms < until_ms`, `kind` as a string, by (event_time_ms, event_id)."""
        raise NotImplementedError

    def deliveries(self) -> Iterator[Delivery]:
        """The log as it was delivered: by epoch and partition, in offset order."""
        raise NotImplementedError

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's events admitted until `at_ms`, now and when they come again."""
        raise NotImplementedError
