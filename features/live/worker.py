"""Live folds: deliveries of an entity's topic into the store, with retries.

Knows the store's failures. Does not know Faust (`streams.workers.worker` delivers).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from features.definitions import DEFINITIONS
from features.live.freshness import measure_freshness, record_fold
from features.rows.aggregate import BASE_EVENT_COLUMNS
from features.store import EntityName, FeatureStore, StoreDown
from streams.bus.delivery import BatchHandler, Delivery
from streams.contract.clock import Clock, WallClock
from streams.contract.schema import event_columns

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
RETRY_FOR_S = 60.0


def fold_input_schema(entity: EntityName) -> pa.Schema:
    """The event columns that a fold of this entity reads."""
    return event_columns(*BASE_EVENT_COLUMNS, "duplicate", *DEFINITIONS[entity].event_columns)


def fold_delivery(
    store: FeatureStore,
    entity: EntityName,
    *,
    clock: Clock | None = None,
    retry_for_s: float = RETRY_FOR_S,
    sleep: Callable[[float], None] = time.sleep,
) -> BatchHandler:
    """A handler that returns when the delivery is in the store.

    While the store is down the handler retries, which is safe because folds are idempotent.

    Raises, from the handler:
        StoreDown: the store was down for `retry_for_s`; the worker must stop.
        RebuildIdChanged: at once; the process must restart under the new rebuild id, from its
            topics' start (`consumer_group`).
    """
    time_of = clock or WallClock()

    def handle(delivery: Delivery) -> None:
        _fold_with_retries(
            lambda: store.fold(entity, delivery.table, delivery.stamp), retry_for_s, sleep
        )
        if delivery.table.num_rows:
            newest_ms = pc.max(delivery.table.column("ingested_at_ms")).as_py()
            now_ms = time_of.now_ms()
            record_fold(store, entity, newest_ms, now_ms)
            measure_freshness(entity, delivery.table, now_ms)

    return handle


def _fold_with_retries(
    fold: Callable[[], int], retry_for_s: float, sleep: Callable[[float], None]
) -> None:
    waited_s, wait_s = 0.0, FIRST_WAIT_S
    while True:
        try:
            fold()
        except StoreDown as down:
            if waited_s >= retry_for_s:
                raise
            logger.warning("%s; retrying in %.1f s", down, wait_s)
            sleep(wait_s)
            waited_s, wait_s = waited_s + wait_s, min(2 * wait_s, LONGEST_WAIT_S)
        else:
            return


def consumer_group(name: str, rebuild_id: int) -> str:
    """The consumer group of one rebuild id. A new id means a new group, which reads its topics
    from the start."""
    return f"{name}-{rebuild_id:08x}"
