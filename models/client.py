"""The model client contract: named tensors in, named tensors out, one pinned version.

Knows model names and versions. Does not know Triton (`serving.clients.triton`) or torch
(`models.release.in_process`, injected by `deploy` where Triton has no wheel).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

import numpy as np

from models.batch import Answer


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
            ModelUnavailable: the server or the version is down, or the timeout passed.
            models.signature.BadInput: the tensors do not fit the model's signature.
        """

    def infer_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> list[Answer]:
        """Runs several requests in one call: one answer for each, in order.

        An invalid request gets a `BadInput` as its answer; the others are answered. `timeout_s`
        is that of the call.

        Raises:
            ModelUnavailable: as `infer`.
        """

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """The parts of one request's answer, each as soon as the model has decided it.

        Joined (`models.stream.joined`), they are what `infer` answers. A model that does not
        stream gives its whole answer as one part. `timeout_s` is that of all parts together.
        `close()` cancels the request: call it, or `contextlib.closing`, where parts are left.

        Raises, while it is iterated:
            ModelUnavailable, models.signature.BadInput: as `infer`; also after some parts.
        """

    def versions(self, model: str) -> tuple[int, ...]:
        """Loaded, ready versions, ascending; () when the model is not loaded."""

    def load(self, model: str) -> None:
        """(Re)loads the model's version folders; running versions keep answering meanwhile."""

    def reload(self, model: str) -> None:
        """Loads the model again although its files are unchanged, to replace a dead process.

        The model may not answer meanwhile. That it answers again is for the caller to check.
        Raises `ModelUnavailable` when it does not load.
        """

    def healthy(self) -> bool:
        """Whether the server is up."""


class ModelUnavailable(RuntimeError):
    """No answer from the model in time; callers fall back and report it."""


class ModelProcessDied(ModelUnavailable):
    """The server is up, and the process that runs the model is dead or frozen."""
