"""Whether the live models answer their canaries, and the reload of one that does not.

Knows canaries, faults and when a reload is due. Does not know how a model is loaded
(`models.client`). A model server reports a model ready even after the model's process died, so
each live model is sent a real request. A reload counts as a repair only once the canary is
answered rightly.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from models.client import ModelClient, ModelProcessDied, ModelUnavailable
from models.registry import streams
from models.release.canary import Canary, wrong_answer
from models.signature import BadInput
from models.stream import joined
from serving.monitoring.canary import Canaries
from serving.pipeline.query import Release

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 1.1  # with the pause between checks less than 2 s: a fault is seen within that
_CONFIRM_S = 5.0  # a busy model also misses `_TIMEOUT_S`, and a reload would not help it
_FIRST_ANSWER_S = 10.0  # a model's first answer is slower than the next ones
_RETRY_S = 2.0  # before the next reload, doubled after each one that did not help
_LONGEST_RETRY_S = 30.0
_LONGEST_RETRY_WRONG_S = 600.0  # a model whose answers stay wrong may be of use between reloads


@dataclass(frozen=True)
class _Fault:
    """dead: its process; silent: no answer in time; wrong: an answer, but not the right one."""

    kind: Literal["dead", "silent", "wrong"]
    text: str


@dataclass
class _Repairs:
    """What was tried for one model since its last right answer."""

    silent_checks: int = 0
    pause_s: float = _RETRY_S
    not_before_s: float = 0.0  # monotonic


class ModelMonitor:
    """Sends each live model its canary every `every_s`, and reloads a model that fails it.

    on_change: called after `problems` changed.
    """

    def __init__(
        self,
        models: ModelClient,
        current_release: Callable[[], Release],
        canaries: Canaries,
        on_change: Callable[[], None] = lambda: None,
        *,
        every_s: float = 0.8,
    ) -> None:
        self._models, self._current_release, self._canaries = models, current_release, canaries
        self._on_change, self._every_s = on_change, every_s
        self._problems: dict[str, str] = {}
        self._repairs: dict[str, _Repairs] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> dict[str, str]:
        """Live model -> why it is unhealthy; shown by /healthz."""
        live, found = self._current_release().models, self._problems
        return {model: problem for model, problem in found.items() if model in live}

    def check(self) -> None:
        """Checks every live model once, and repairs those for which a repair is due."""
        for model, version in self._current_release().models.items():
            self._check(model, version)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._check_loop, name="model-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _check_loop(self) -> None:
        """Models are checked side by side: a dead one does not delay the check of another."""
        running: dict[str, threading.Thread] = {}
        while not self._stop.wait(self._every_s):
            for model, version in self._current_release().models.items():
                if model not in running or not running[model].is_alive():
                    running[model] = threading.Thread(
                        target=self._check_safely, args=(model, version), daemon=True
                    )
                    running[model].start()

    def _check_safely(self, model: str, version: int) -> None:
        try:
            self._check(model, version)
        except Exception:
            _LOG.exception("checking the model %s failed", model)

    def _check(self, model: str, version: int) -> None:
        canary = self._canaries.of(model, version)
        if canary is None:
            return
        asked_s = time.time()
        fault = self._fault(model, version, canary, _TIMEOUT_S)
        self._report(model, fault)
        if fault is None:
            self._repairs.pop(model, None)
            return
        repairs = self._repairs.setdefault(model, _Repairs())
        repairs.silent_checks += fault.kind == "silent"
        if not self._repair_is_due(model, version, canary, fault):
            return
        with self._canaries.repair_lock(model, asked_s) as mine:
            if mine:
                self._repair(model, version, canary, fault)

    def _fault(self, model: str, version: int, canary: Canary, timeout_s: float) -> _Fault | None:
        try:
            given = self._models.infer(model, canary.request, version=version, timeout_s=timeout_s)
            why = wrong_answer(model, canary, given)
            if not why and streams(model):
                parts = self._models.infer_stream(
                    model, canary.request, version=version, timeout_s=timeout_s
                )
                why = wrong_answer(model, canary, joined(parts))
        except BadInput as error:
            return _Fault("wrong", f"rejects its canary: {error}")
        except ModelProcessDied as error:
            return _Fault("dead", str(error))
        except ModelUnavailable as error:
            return _Fault("silent", str(error))
        return _Fault("wrong", why) if why else None

    def _repair_is_due(self, model: str, version: int, canary: Canary, fault: _Fault) -> bool:
        repairs = self._repairs[model]
        if time.monotonic() < repairs.not_before_s or not self._models.healthy():
            return False  # a server that is down is restarted by its supervisor
        if fault.kind != "silent":
            return True
        if repairs.silent_checks < 2:
            return False
        return self._fault(model, version, canary, _CONFIRM_S) is not None

    def _repair(self, model: str, version: int, canary: Canary, fault: _Fault) -> None:
        started_s = time.monotonic()
        left = self._reload(model, version) or self._fault(model, version, canary, _FIRST_ANSWER_S)
        took_s = time.monotonic() - started_s
        self._report(model, left)
        if left is None:
            self._repairs.pop(model, None)
            text = "model %s: %s; it answers its canary again after a reload of %.1f s"
            _LOG.warning(text, model, fault.text, took_s)
            return
        repairs = self._repairs[model]
        repairs.not_before_s = time.monotonic() + repairs.pause_s
        longest_s = _LONGEST_RETRY_WRONG_S if left.kind == "wrong" else _LONGEST_RETRY_S
        text = "model %s: %s; a reload did not help, the next is in %.0f s: %s"
        _LOG.error(text, model, fault.text, repairs.pause_s, left.text)
        repairs.pause_s = min(2 * repairs.pause_s, longest_s)

    def _reload(self, model: str, version: int) -> _Fault | None:
        """Unloads only what does not answer: a version that is not loaded is just loaded."""
        try:
            if version in self._models.versions(model):
                self._models.reload(model)
            else:
                self._models.load(model)
        except ModelUnavailable as error:
            return _Fault("dead", str(error))
        return None

    def _report(self, model: str, fault: _Fault | None) -> None:
        text, before = fault.text if fault else "", self._problems.get(model, "")
        if text == before:
            return
        others = {name: each for name, each in self._problems.items() if name != model}
        self._problems = others | ({model: text} if text else {})
        self._on_change()
