"""One baseline on the same topic: `baseline.py floor|faust|quixstreams SERVERS GROUP PARTITIONS SECONDS FOLDER`.

Run by path, since quixstreams has an environment of its own. The floor consumes without
decoding. The other two keep, per user, a count per kind, the sum of dwell and the last 50
items: less than the path keeps, without its log, feedback and deduplication. Prints
{"events", "seconds", "cpu_s"} as JSON, `SECONDS` after the first event. Does not know the path.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

TOPIC, IDLE_S = "behaviour", 2.0
Row = dict[str, Any]


class EventCounter:
    """Counts events after the first one; ends the process when time is up or events stop."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._events = seconds, 0
        self._began = self._cpu_began = self._last = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def add(self, n: int = 1) -> None:
        self._last = time.perf_counter()
        if not self._began:
            self._began, self._cpu_began = self._last, time.process_time()
            return
        self._events += n
        if self._last - self._began >= self._seconds:
            self._end(time.process_time() - self._cpu_began)

    def _watch(self) -> None:
        """Ends the run at the last event if none comes for two seconds."""
        events, cpu_s = 0, 0.0
        while True:
            if self._began and self._events != events:
                events, cpu_s = self._events, time.process_time() - self._cpu_began
            elif self._events and time.perf_counter() - self._last > IDLE_S:
                self._end(cpu_s)
            time.sleep(0.02)

    def _end(self, cpu_s: float) -> None:
        found = {"events": self._events, "seconds": self._last - self._began, "cpu_s": cpu_s}
        os.write(1, json.dumps(found).encode() + b"\n")
        os._exit(0)


def count(row: Row, event: Row) -> Row:
    row[event["kind"]] = row.get(event["kind"], 0) + 1
    row["dwell_ms"] = row.get("dwell_ms", 0) + event.get("dwell_ms", 0)
    if "video_id" in event:
        row["videos"] = [event["video_id"], *row.get("videos", [])[:49]]
    return row


def floor(servers: str, group: str, _partitions: int, counter: EventCounter, _folder: str) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": group, "auto.offset.reset": "earliest",
         "enable.auto.commit": False}
    )  # fmt: skip
    consumer.subscribe([TOPIC])
    while True:
        if messages := consumer.consume(10_000, 0.2):
            counter.add(len(messages))


def faust(servers: str, group: str, partitions: int, counter: EventCounter, folder: str) -> None:
    import faust

    app = faust.App(group, broker=f"kafka://{servers}", datadir=folder, web_enabled=False,
                    topic_partitions=partitions, topic_replication_factor=1,
                    consumer_auto_offset_reset="earliest", stream_wait_empty=False,
                    broker_session_timeout=10)  # fmt: skip
    rows = app.Table("rows", default=dict, partitions=partitions)
    topic = app.topic(TOPIC, key_type=str, key_serializer="raw", value_serializer="json")

    @app.agent(topic)
    async def fold(stream: Any) -> None:
        async for event in stream:
            rows[event["user_id"]] = count(rows[event["user_id"]], event)
            counter.add()

    faust.Worker(app, loglevel="error", redirect_stdouts=False).execute_from_commandline()


def quixstreams(
    servers: str, group: str, _partitions: int, counter: EventCounter, folder: str
) -> None:
    from quixstreams import Application  # type: ignore[import-not-found]

    app = Application(broker_address=servers, consumer_group=group, state_dir=folder,
                      auto_offset_reset="earliest", loglevel="ERROR")  # fmt: skip
    frame = app.dataframe(app.topic(TOPIC, value_deserializer="json"))

    def fold(event: Row, state: Any) -> None:
        state.set("row", count(state.get("row", {}), event))
        counter.add()

    frame.update(fold, stateful=True)
    app.run()


if __name__ == "__main__":
    name, servers, group, partitions, seconds, folder = sys.argv[1:]
    run = {"floor": floor, "faust": faust, "quixstreams": quixstreams}[name]
    run(servers, group, int(partitions), EventCounter(float(seconds)), folder)
