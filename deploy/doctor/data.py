"""What a running stack stores: its disk, its dead letters and its release.

Knows limits and remedies. Does not know servers or processes.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator

from deploy import wiring
from deploy.doctor.finding import Finding, healthy, sick
from deploy.settings import Settings
from models.release.store import ReleaseStore
from streams.bus.contract import Bus, BusError
from streams.bus.polled import Record
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.dead_letters import parse_dead_letter

MIN_FREE_SHARE, MIN_FREE_BYTES = 0.05, 1 << 30
DEAD_LETTERS_WITHIN_S, MANY_DEAD_LETTERS = 600.0, 20
_LAST = 200  # offsets of each partition's end that are looked at


def examine(settings: Settings, *, broker_answers: bool) -> Iterator[Finding]:
    """Disk, release, and where the broker answers the dead letters."""
    usage = shutil.disk_usage(settings.home)
    yield disk(usage.free, usage.total)
    yield release(settings)
    if broker_answers:
        yield dead_letters(wiring.bus(settings), time.time())


def disk(free_bytes: int, total_bytes: int) -> Finding:
    """The disk of the home, where the event log grows."""
    text = f"{free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB are free"
    if free_bytes >= max(MIN_FREE_BYTES, MIN_FREE_SHARE * total_bytes):
        return healthy("disk of the log", text)
    return sick(
        "disk of the log",
        f"{text}: nearly full",
        "enlarge it, or set log.retention_days and run `tidemill log retain`",
    )


def release(settings: Settings) -> Finding:
    """Whether a release is live and its bundles are there."""
    store = ReleaseStore(settings.releases_dir)
    live = store.current()
    if live is None:
        return sick(
            "release",
            "there is none: popularity answers every request",
            "tidemill models train, then tidemill models promote",
        )
    lost = [f"{m} {v}" for m, v in live.models.items() if store.bundle_folder(m, v) is None]
    if lost:
        return sick(
            "release",
            f"{live.release_id} names {', '.join(lost)}, and there is no such bundle",
            "restore the folder releases of the home, or `tidemill models rollback`",
        )
    return healthy("release", f"{live.release_id} is live")


def dead_letters(bus: Bus, now_s: float) -> Finding:
    """Dead letters of the last minutes, of those at the topic's end."""
    try:
        causes = _recent_causes(bus, int((now_s - DEAD_LETTERS_WITHIN_S) * 1e3))
    except BusError as error:
        return sick("dead letters", f"they cannot be read: {error}", "see the broker")
    count, minutes = causes.total(), DEAD_LETTERS_WITHIN_S / 60
    if count < MANY_DEAD_LETTERS:
        return healthy("dead letters", f"{count} in the last {minutes:g} minutes")
    named = ", ".join(f"{cause} ({n})" for cause, n in causes.most_common(3))
    return sick(
        "dead letters",
        f"{count} or more in the last {minutes:g} minutes: {named}",
        "correct what sends them; `tidemill replay --dead-letters` sends them again, repaired",
    )


def _recent_causes(bus: Bus, since_ms: int) -> Counter[str]:
    """How many of each cause; events of erased users are rejected as they should be."""
    found: Counter[str] = Counter()
    for partition, (first, end) in bus.ends(BEHAVIOUR_DEAD).items():
        for record in bus.scan(BEHAVIOUR_DEAD, partition, max(first, end - _LAST), end):
            if record.timestamp_ms >= since_ms:
                found[_cause(record)] += 1
    del found["erased"]
    return found


def _cause(record: Record) -> str:
    try:
        return parse_dead_letter(record).cause.cause
    except ValueError:
        return "foreign record"
