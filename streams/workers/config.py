"""Configuration of a worker.

Knows what a driver and the batching need. Does not know handlers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from streams.bus.kafka.login import PLAIN_TEXT, KafkaLogin
from streams.workers.batching import BatchingPolicy
from streams.workers.retry import RetryPolicy


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How a worker reads and delivers.

    `data_dir`: the driver's own files.
    `instance_id`: makes the group membership static; distinct per worker and the same after a
    restart, it saves a rebalance.
    `session_timeout_s`: how long a silent member keeps its partitions. The embedded broker
    answers a join after half of it and delays a static member by 6 s: there, set 2 s and no
    `instance_id`.
    `batching`: policies that combine messages require handlers that recognise repeats by row or
    message, as `FeatureStore.fold` does.
    `low_priority_topics`: their handlers pause as long as they worked, in favour of the others.
    `schemas`: the columns that a topic's handler gets; default: EVENT_SCHEMA.
    """

    bootstrap_servers: str
    data_dir: Path
    login: KafkaLogin = PLAIN_TEXT
    instance_id: str | None = None
    session_timeout_s: float = 6.0
    commit_interval_s: float = 1.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    batching: BatchingPolicy = field(default_factory=BatchingPolicy)
    low_priority_topics: Collection[str] = ()
    schemas: Mapping[str, pa.Schema] = field(default_factory=dict)
