"""Users to forget: the topic `erasures` carried into the online store.

Knows the topic's messages. Does not know who asked (`serving` writes them) nor how log
and feedback forget (`streams`).
"""

from __future__ import annotations

import logging
import threading
import time

from pydantic import BaseModel, ValidationError

from features.store import FeatureStore, StoreDown
from streams.bus import Bus, Record
from streams.topics import ERASURES

logger = logging.getLogger(__name__)

WAIT_S = 0.5


class Erasure(BaseModel):
    """One message of the topic: forget the user's events up to `at_ms`."""

    user_id: str
    at_ms: int


def follow(bus: Bus, store: FeatureStore, stop: threading.Event, *, group: str) -> None:
    """Erases every user named in the topic, from its start, until `stop` is set.

    Give a group per generation (`features.fold_worker.consumer_group`): a store that was
    emptied has lost its tombstones too, and reads them again. Messages that are no
    erasure are logged and passed over. Waits while the store is down.
    """
    consumer = bus.consumer([ERASURES], group)
    try:
        while not stop.is_set():
            if records := consumer.poll(100, 0.2):
                for record in records:
                    _erase(record, store, stop)
                if not stop.is_set():
                    consumer.commit(records)
    finally:
        consumer.close()


def _erase(record: Record, store: FeatureStore, stop: threading.Event) -> None:
    try:
        erasure = Erasure.model_validate_json(record.value or b"")
    except ValidationError as error:
        logger.warning("offset %d of %s is no erasure: %s", record.offset, ERASURES, error)
        return
    while not stop.is_set():
        try:
            return store.erase(erasure.user_id, erasure.at_ms)
        except StoreDown as down:
            logger.warning("%s; trying again", down)
            time.sleep(WAIT_S)
