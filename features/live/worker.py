"""Folding live: deliveries of an entity's topic into the store, and how fresh that leaves it.

Knows the store's failures and waits. Does not know Faust (`streams.workers.worker` delivers).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from features.definitions import DEFINITIONS
from features.live.freshness import note_fold
from features.rows.aggregate import PLACED
from features.store import EntityName, FeatureStore, StoreDown
from streams.bus.delivery import BatchHandler, Delivery
from streams.contract.clock import Clock, WallClock
from streams.contract.schema import columns

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
PATIENCE_S = 60.0


def folded_schema(entity: EntityName) -> pa.Schema:
    """The columns of events that a fold of this entity looks at."""
    return columns(*PLACED, "duplicate", *DEFINITIONS[entity].event_columns)


def fold_delivery(
    store: FeatureStore,
    entity: EntityName,
    *,
    clock: Clock | None = None,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> BatchHandler:
    """A handler that returns when the delivery is in the store.

    While the store is down it waits and tries again (a second try changes nothing that
    the first has written); after `patience_s` it raises `StoreDown`, for the worker to
    stop. `GenerationChanged` goes through at once: the process must end and start
    again under the new generation, from the topics' start (`consumer_group`).
    """
    time_of = clock or WallClock()

    def handle(delivery: Delivery) -> None:
        _patiently(lambda: store.fold(entity, delivery.table, delivery.stamp), patience_s, sleep)
        if delivery.table.num_rows:
            newest_ms = pc.max(delivery.table.column("ingested_at_ms")).as_py()
            note_fold(store, entity, newest_ms, time_of.now_ms())

    return handle


def _patiently(fold: Callable[[], int], patience_s: float, sleep: Callable[[float], None]) -> None:
    waited_s, wait_s = 0.0, FIRST_WAIT_S
    while True:
        try:
            fold()
        except StoreDown as down:
            if waited_s >= patience_s:
                raise
            logger.warning("%s; trying again in %.1f s", down, wait_s)
            sleep(wait_s)
            waited_s, wait_s = waited_s + wait_s, min(2 * wait_s, LONGEST_WAIT_S)
        else:
            return


def consumer_group(name: str, generation: int) -> str:
    """The group that folds one generation. A new generation reads its topics from the start."""
    return f"{name}-{generation:08x}"
