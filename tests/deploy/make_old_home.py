"""Writes a stack's home with the code of commit 3de34bd: `make_old_home.py HOME [STORE]`.

Run with PYTHONPATH set to that commit's tree; the imports are its module names. STORE is the
host:port of an online store, for the Feast registry. What the log holds is printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from models.ranking.export import write_bundle
from models.ranking.inputs import SIGNATURE
from models.ranking.network import Ranker
from models.ranking.tensors import genres_by_row, vocabulary_of
from streams.delivery import Delivery
from streams.events import KIND_CODE, KINDS, CatalogueItem, ItemAdded
from streams.feedback_store import FeedbackStore, read_feedback
from streams.impression import Impression, sign
from streams.log import EventLog
from streams.outcomes import FEEDBACK_SCHEMA
from streams.schema import EVENT_SCHEMA
from streams.topics import EVENTS_BY_USER

import streams
from deploy import state
from deploy.settings import Settings
from features import registry
from models.ranking.ple import canary, size_of
from models.recipe import TrainingLog
from models.release import ReleaseStore, write_canary
from streams import upkeep  # private-word
from streams.bus import Stamp
from streams.catalogue import CatalogueLog
from streams.erasure import KeptErasures

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
KEY = bytes(range(32))
BATCHES, ROWS = 12, 10
SETTINGS = """
[broker]
partitions = 2
doors = 1  # private-word

[telemetry.metrics_ports]
facts = 9101
features = 9102
edge = 9103
"""


def main(home: Path, store: str) -> None:
    assert not Path(streams.__file__).with_name("ingest").exists(), "not the old code"
    (home / "settings.toml").write_text(SETTINGS)
    state.write_settings(Settings(home=home, broker={"partitions": 2, "doors": 1}))  # private-word
    state.impression_key(home)
    log, feedback = (
        EventLog(home / "log"),
        FeedbackStore(home / "feedback", key=KEY, windows_ms={"play": 10 * MINUTE_MS}),
    )
    for number in range(BATCHES):
        stamp = Stamp("first" if number < 8 else "second", number % 2, number)
        delivery = Delivery(EVENTS_BY_USER, stamp, _batch(number))
        log.append(delivery)
        feedback.join(delivery)
        if number == 3:
            log.gather()
            upkeep.compact(log.segments, START_MS + 90 * MINUTE_MS)  # private-word
        elif number == 6:
            log.gather()
            feedback.segments.gather()
    journal = KeptErasures(home / "log" / "erasures.jsonl")
    journal.keep("erased-user", START_MS)
    _catalogue(home)
    _release(home, log)
    if store:
        registry.open_store(
            registry_path=home / "registry.db", address=store, db=0, project="upgrade"
        ).apply()
    rows = log.read(duplicates=True).sort("event_id")
    print(
        json.dumps(
            {
                "events": rows.to_dicts(),
                "counted": len(log.read()),
                "feedback": read_feedback(home / "feedback").sort("impression_id").to_dicts(),
                "begins_at_ms": log.begins_at_ms(),
            }
        )
    )


def _batch(number: int) -> pa.Table:
    rows = [_event(number * ROWS + row) for row in range(ROWS)]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def _event(n: int) -> dict[str, Any]:
    kind = KINDS[n % 5]
    user, item, at_ms = f"u{n % 7}", f"v{n % 9}", START_MS + n * MINUTE_MS
    token = sign(
        Impression(
            request_id=f"r{n // 5}",
            surface="feed",
            user_id=user,
            video_id=item,
            slot=n % 5,
            propensity=0.5,
            release="r0001",
            served_at_ms=at_ms,
        ),
        KEY,
    )
    return dict.fromkeys(EVENT_SCHEMA.names) | {
        "event_id": f"e{n:03d}",
        "user_id": user,
        "kind": KIND_CODE[kind],
        "event_time_ms": at_ms,
        "ingested_at_ms": at_ms + 100,
        "surface": "feed",
        "origin": "live",
        "impression": token if kind in ("shown", "play") else None,
        "video_id": item,
        "author_id": f"a{n % 3}",
        "dwell_ms": 900 if kind == "play" else None,
        "late": n % 10 == 0,
        "duplicate": n % 25 == 24,
        "source_partition": 0,
        "source_offset": n,
    }


def _catalogue(home: Path) -> None:
    items = [CatalogueItem(video_id=f"v{n}", title=f"Film {n}", genres=()) for n in range(9)]
    CatalogueLog(home / "log").append(
        ItemAdded(event_id=f"i{n}", event_time_ms=START_MS, item=item)
        for n, item in enumerate(items)
    )


def _release(home: Path, log: EventLog) -> None:
    """An untrained ranker, sealed and live."""
    items = pl.DataFrame(
        {"video_id": [f"v{n}" for n in range(9)], "title": ["Film"] * 9,
         "genres": [["Drama"]] * 9, "author_id": [f"a{n % 3}" for n in range(9)]}
    )  # fmt: skip
    none = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    training = TrainingLog(log.read(), items, none, START_MS)
    vocabulary = vocabulary_of(training)
    network = Ranker(size_of(vocabulary, 8), genres_by_row(training, vocabulary))
    releases = ReleaseStore(home / "releases")
    staging = releases.staging("ranker")
    write_bundle(network, vocabulary, staging)
    write_canary(staging, canary())
    bundle = releases.seal(
        "ranker",
        staging,
        runtime="models.ranking.runtime:RankerRuntime",
        signature=SIGNATURE,
        created_ms=START_MS,
    )
    release = releases.propose({"ranker": bundle.version}, created_ms=START_MS)
    releases.set_current(release.release_id, at_ms=START_MS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
