"""Good inputs of every kind, sent beside the bad ones: each must arrive.

Knows a stack's HTTP routes, topics and files. Does not know what was sent before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import polars as pl

from deploy import wiring
from deploy.settings import Settings
from deploy.stack import Stack
from streams.bus.contract import BusError, Outgoing
from streams.contract.topics import BEHAVIOUR, REQUESTS, RESPONSES
from streams.erasure import ErasureJournal
from streams.event_log import EventLog

EVENT_KIND = "like"
_BUS_ERROR = f"{BusError.__module__}.{BusError.__name__}:"  # a traceback's last line


class GoodInputs:
    """One item, one erasure, two events and a request to a running stack."""

    def __init__(self, stack: Stack, within_s: float) -> None:
        self._stack, self._within_s = stack, within_s
        self._settings: Settings = stack.settings
        self._now_ms = wiring.clock(self._settings.clock).now_ms

    def missing(self) -> list[str]:
        """What did not arrive, and which processes ended; empty if all is well."""
        name = uuid.uuid4().hex
        found = []
        with httpx.Client(base_url=self._stack.page, timeout=60.0, trust_env=False) as http:
            self._send(http, name)
            deadline = time.monotonic() + self._within_s
            for what, arrived in self._arrivals(http, name).items():
                while not (here := _holds(arrived)) and time.monotonic() < deadline:
                    time.sleep(0.5)
                if not here:
                    found.append(f"not within {self._within_s:g} s: {what}")
            if (answer := http.get("/healthz")).status_code != 200:
                found.append(f"/healthz {answer.status_code}: {answer.text[:300]}")
        for status in self._stack.status():
            if (count := status.restarts - self._broker_timeouts(status.name)) > 0:
                found.append(f"{status.name} restarted {count} times")
        return found

    def _broker_timeouts(self, name: str) -> int:
        """How often the process ended because the broker did not answer, as on a busy machine."""
        path = self._settings.home / "logs" / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return sum(
            line.startswith(_BUS_ERROR) and "timed out" in line for line in text.splitlines()
        )

    def _send(self, http: httpx.Client, name: str) -> None:
        now_ms = self._now_ms()
        item = {"video_id": f"item-{name}", "title": "Good"}
        http.post("/v1/catalogue", json=item).raise_for_status()
        http.post("/v1/erasures", json={"user_id": f"gone-{name}"}).raise_for_status()
        http.post("/v1/events", json=self._event(name, "http", now_ms)).raise_for_status()
        event = orjson.dumps(self._event(name, "kafka", now_ms))
        request = {"surface": "feed", "user_id": f"user-{name}", "request_id": name}
        producer = wiring.bus(self._settings).producer()
        producer.send([Outgoing(BEHAVIOUR, event), Outgoing(REQUESTS, orjson.dumps(request))])
        producer.close()

    @staticmethod
    def _event(name: str, over: str, now_ms: int) -> dict[str, Any]:
        return {
            "event_id": f"{over}-{name}", "user_id": f"user-{name}", "kind": EVENT_KIND,
            "video_id": f"item-{name}", "event_time_ms": now_ms,
        }  # fmt: skip

    def _arrivals(self, http: httpx.Client, name: str) -> dict[str, Callable[[], bool]]:
        log = EventLog(self._settings.log_dir)
        journal = ErasureJournal(self._settings.erasures_path)
        responses = wiring.bus(self._settings).consumer([RESPONSES], f"fuzz-{name}")

        def user() -> dict[str, Any]:
            answer = http.get(f"/v1/users/user-{name}").raise_for_status()
            return dict(answer.json()["features"])

        def answered() -> bool:
            found = (each.value or b"" for each in responses.poll(500, 1.0))
            return any(name.encode() in value and b'"items"' in value for value in found)

        def logged() -> bool:
            mine = log.read().filter(pl.col("user_id") == f"user-{name}")
            return sorted(mine["event_id"]) == [f"http-{name}", f"kafka-{name}"]

        def shown() -> bool:
            stated = {"video_id": f"item-{name}"}
            return http.post("/v1/catalogue/lookup", json=stated).status_code == 200

        return {
            "the item in the catalogue": shown,
            "two events in the user's features": lambda: user()[f"{EVENT_KIND}_count_all"] == 2,
            "two events in the log": logged,
            "the erasure in the journal": lambda: f"gone-{name}" in journal.read(),
            "a response to the request": answered,
        }


def _holds(arrived: Callable[[], bool]) -> bool:
    """False also while a server or a file does not answer."""
    try:
        return arrived()
    except (httpx.HTTPError, OSError, KeyError, ValueError, pl.exceptions.PolarsError):
        return False
