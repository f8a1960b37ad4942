"""The model client contract: named tensors in, named tensors out, one pinned version.

Knows model names and versions. Does not know Triton (`serving.clients.triton`) nor torch
(`models.release.in_process`, injected by `deploy` where Triton has no wheel).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class ModelClient(Protocol):
    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one request on `version` (the newest when None).

        BYTES tensors are numpy object arrays of bytes. `headers` carry the trace context.

        Raises:
            ModelUnavailable: the server or the version is down or out of time.
            models.signature.BadInput: the server refused the tensors.
        """

    def versions(self, model: str) -> tuple[int, ...]:
        """Loaded, ready versions, ascending; () when the model is not loaded."""

    def load(self, model: str) -> None:
        """(Re)loads the model's version folders; the running versions answer meanwhile."""

    def healthy(self) -> bool: ...


class ModelUnavailable(RuntimeError):
    """No answer from the model in time; callers fall back and say so."""
