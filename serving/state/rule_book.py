"""The standing rules in force, kept in one JSON file that the processes of a stack share.

Knows the file and the checked set. Does not know how a rule acts (`serving.stages.rules`).
A set replaces the one before as a whole; the file is replaced in one step.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.rules.definitions import CompiledRules, RuleSet, RulesRefused, read_rules
from serving.state.blocked_queries import Stamp, stamp_of

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.2  # how often the file is looked at, at most


class RuleBook:
    """The rules in force. Thread safe; a change by another process is seen within 0.2 s.

    path: where the set is kept; None keeps it in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._surface_kinds: Mapping[str, Sequence[str]] = {}
        self._path = path
        self._lock = threading.Lock()
        self._rules = CompiledRules(RuleSet())
        self._stamp: Stamp | None = None
        self._look_again_s = 0.0

    def know_surfaces(self, surface_kinds: Mapping[str, Sequence[str]]) -> None:
        """States which kinds of rules act on which surface, before the first set is read."""
        self._surface_kinds = surface_kinds

    def current(self) -> CompiledRules:
        if self._path is not None and time.monotonic() >= self._look_again_s:
            self._look_again_s = time.monotonic() + _LOOK_EVERY_S
            if stamp_of(self._path) != self._stamp:
                with self._lock:
                    self._read(self._path)
        return self._rules

    def check(self, stated: Any) -> CompiledRules:
        """Raises `RulesRefused` with every fault of the set."""
        return read_rules(stated, self._surface_kinds)

    def replace(self, stated: Any) -> CompiledRules:
        """Puts a set in force in the place of the one before.

        Raises:
            RulesRefused: it has faults; the set before stays.
            OSError: it cannot be written; the set before stays.
        """
        rules = self.check(stated)
        with self._lock:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
                with partial.open("w", encoding="utf-8") as file:
                    json.dump(rules.stated.stated(), file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, self._path)
                self._stamp = stamp_of(self._path)
            self._rules = rules
        return rules

    def _read(self, path: Path) -> None:
        """Reads the file. One that cannot be read is named, and the set so far stays."""
        stamp = stamp_of(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            stated = {} if stamp is None else json.loads(path.read_text(encoding="utf-8"))
            self._rules = self.check(stated)
        except (OSError, ValueError, RulesRefused) as error:
            _LOG.error("the rules in %s cannot be read: %s", path, error)
