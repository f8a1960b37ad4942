"""Old names of settings, processes and command options. Each works for one release.

Knows old and new names and prints one warning for each that is used. Does not know what the
names mean. Remove an entry in the release after the one that renamed it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

SETTINGS = {"broker.doors": "ingest.replicas"}  # section.key; private-word
PROCESSES = {"facts": "log-writer", "edge": "kafka-requests"}

_log = logging.getLogger("tidemill")


@cache
def warn(old: str, new: str) -> None:
    """Warns once a process; without configured logging the text goes to standard error."""
    _log.warning("%s is now %s; the old name works until the next release", old, new)


def process_name(name: str) -> str:
    """The present name of a process, also with an instance behind a dash."""
    for old, new in PROCESSES.items():
        if name == old or name.startswith(f"{old}-"):
            warn(f"the process name {old}", new)
            return new + name.removeprefix(old)
    return name


def current_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of one source with old keys replaced. A new key in it takes precedence."""
    found = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for old, new in SETTINGS.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if isinstance(found.get(section), dict) and key in found[section]:
            warn(_both_forms(old), _both_forms(new))
            value = found[section].pop(key)
            found.setdefault(new_section, {}).setdefault(new_key, value)
    telemetry = found.get("telemetry")
    if isinstance(telemetry, dict) and isinstance(telemetry.get("metrics_ports"), Mapping):
        ports = {process_name(name): port for name, port in telemetry["metrics_ports"].items()}
        telemetry["metrics_ports"] = ports
    return found


def _both_forms(key: str) -> str:
    return f"{key} (TIDEMILL_{key.replace('.', '__').upper()})"
