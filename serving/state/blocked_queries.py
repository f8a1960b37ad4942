"""Queries that are taken down: they are neither generated nor offered.

Knows texts and one JSON file, which the processes of a stack share. Does not know sources or
routes. Spellings with the same words are one query, as they are for the model.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from models.generation.words import split_words

_LOG = logging.getLogger(__name__)
Stamp = tuple[int, int, int]


class BlockedQueries:
    """The list of blocked queries. Thread safe; a change by another process is seen at once.

    path: where the list is kept; None keeps it in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._texts: dict[tuple[str, ...], str] = {}
        self._stamp: Stamp | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def texts(self) -> tuple[str, ...]:
        """The blocked queries as they were given, sorted."""
        return tuple(sorted(self._current().values()))

    def blocks(self, query: str) -> bool:
        return _key(query) in self._current()

    def add(self, query: str) -> bool:
        """Blocks a query. False if it was blocked before. Raises `OSError`."""
        return self._change(lambda texts: texts.setdefault(_key(query), query))

    def remove(self, query: str) -> bool:
        """Permits a query again. False if it was not blocked. Raises `OSError`."""
        return self._change(lambda texts: texts.pop(_key(query), None))

    def _change(self, change: Callable[[dict[tuple[str, ...], str]], object]) -> bool:
        with self._lock:
            if self._path is None:
                return self._changed(change)
            with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # read, change and write as one step
                self._read()
                if not self._changed(change):
                    return False
                partial = self._path.with_name(f".{self._path.name}")
                partial.write_text(json.dumps(sorted(self._texts.values())), encoding="utf-8")
                os.replace(partial, self._path)
                return True

    def _changed(self, change: Callable[[dict[tuple[str, ...], str]], object]) -> bool:
        texts = dict(self._texts)
        change(texts)
        changed, self._texts = texts != self._texts, texts
        return changed

    def _current(self) -> dict[tuple[str, ...], str]:
        if self._path is not None and stamp_of(self._path) != self._stamp:
            with self._lock:
                self._read()
        return self._texts

    def _read(self) -> None:
        """Reads the file. One that cannot be read is named, and the list so far stays."""
        assert self._path is not None
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if stamp is None:
            self._texts = {}
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._texts = {_key(str(text)): str(text) for text in found}
        except (OSError, ValueError, TypeError) as error:
            _LOG.error("the blocked queries in %s cannot be read: %s", self._path, error)


def _key(query: str) -> tuple[str, ...]:
    return split_words(query) or (query.strip(),)


def stamp_of(path: Path) -> Stamp | None:
    """Differs after the file was replaced; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
