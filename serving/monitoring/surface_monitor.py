"""Whether every surface answers: each is sent its canary now and then.

Knows requests and slates. Does not know how a surface answers, nor any one surface. A reply is
right if it has an item, from a fallback or not: what failed behind it, the other checks show.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from serving.pipeline.query import Slate
from serving.pipeline.requests import Request

_LOG = logging.getLogger(__name__)
_FAILURES = 2  # in a row, before a surface counts as down: one may be a moment's load

MakeCanary = Callable[[str], Request]
"""A request about an item of the catalogue, by its id."""


class SurfaceMonitor:
    """Sends each surface its canary every `every_s`.

    answer: `Surfaces.answer` without exploration. item_ids: those of the catalogue; while it is
    empty, no surface is asked.
    """

    def __init__(
        self,
        answer: Callable[[Request], Slate],
        canaries: Mapping[str, MakeCanary],
        item_ids: Callable[[], Sequence[str]],
        *,
        every_s: float = 10.0,
    ) -> None:
        self._answer, self._canaries, self._item_ids = answer, canaries, item_ids
        self._every_s = every_s
        self._failures: dict[str, tuple[int, str]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> dict[str, str]:
        """Surface -> why it does not answer."""
        return {name: why for name, (count, why) in self._failures.items() if count >= _FAILURES}

    def check(self) -> None:
        """Asks every surface once."""
        item_ids = self._item_ids()
        if not item_ids:
            self._failures = {}
            return
        found: dict[str, tuple[int, str]] = {}
        for name, canary in self._canaries.items():
            if why := self._problem(canary, item_ids[0]):
                found[name] = (self._failures.get(name, (0, ""))[0] + 1, why)
        self._failures = found

    def start(self) -> None:
        self._thread = threading.Thread(
            target=self._check_loop, name="surface-monitor", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _check_loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self.check()

    def _problem(self, canary: MakeCanary, item_id: str) -> str:
        try:
            slate = self._answer(canary(item_id))
        except Exception as error:
            _LOG.warning("a surface failed its canary", exc_info=error)
            return f"fails its canary: {type(error).__name__}"
        return "" if slate.items else "answers its canary without an item"
