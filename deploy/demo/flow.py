"""Counts of events in the demo's stack, and whether its page answers.

Knows the processes' metrics, the bus and HTTP. Does not know what is done with the counts.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping

from deploy import wiring
from deploy.demo.report import Flow
from deploy.settings import Settings
from streams.bus.contract import BusError
from streams.contract.topics import BEHAVIOUR, BEHAVIOUR_DEAD, EVENTS_BY_USER


def events_handled(settings: Settings, process: str, topic: str = EVENTS_BY_USER) -> int | None:
    """How many events a worker has handled, by its own counter; None if it does not answer."""
    port = settings.telemetry.metrics_ports.get(process)
    name = f'tidemill_events_handled_total{{topic="{topic}"}} '
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    return next(
        (int(float(line[len(name) :])) for line in text.splitlines() if line.startswith(name)), 0
    )


def event_flow(settings: Settings) -> Flow:
    """Events sent, folded and refused since the start."""
    counts: Mapping[str, int | None]
    try:
        bus = wiring.bus(settings)
        counts = {
            topic: sum(end - start for start, end in bus.ends(topic).values())
            for topic in (BEHAVIOUR, BEHAVIOUR_DEAD)
        }
    except BusError:
        counts = {}
    folded = events_handled(settings, "features")
    return Flow(counts.get(BEHAVIOUR), folded, counts.get(BEHAVIOUR_DEAD))


def await_page(page: str, timeout_s: float = 60.0) -> None:
    """Returns when the page answers; raises OSError after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(page, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
