"""Everything that is examined of a running stack.

Knows the order: servers, processes, data. Does not know any check.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploy import state
from deploy.doctor import data, processes, servers
from deploy.doctor.finding import Finding


def examine(home: Path) -> Iterator[Finding]:
    """Findings on the stack of `home`, one by one as they are made; none where no stack ran."""
    try:
        settings = state.read_settings(home)
    except state.NotRunning:
        return
    broker_answers = False
    for finding in servers.examine(settings):
        broker_answers |= finding.name == "broker" and finding.ok
        yield finding
    yield from processes.examine(home, settings)
    yield from data.examine(settings, broker_answers=broker_answers)
