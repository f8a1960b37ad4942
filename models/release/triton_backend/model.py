"""Triton's Python backend for every bundle: loads the bundle's Runtime and calls it.

Knows the backend's calls and how to answer one request with an error. Does not know any
model: `bundle.json` names the class. This file is copied into each version folder. It
imports neither pyarrow, polars nor Feast, because the backend's numpy is 1.26.

A request with invalid tensors gets "BadInput: ..."; other requests of its batch are served.
A streaming form (`models.stream`) reads the bundle of its model and answers in parts, on threads: a
request is ended by another one, because a caller that has left is not always reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_STREAMS = 4  # answered at once by one process; others wait


class TritonPythonModel:
    """One version of one model; Triton calls `initialize` once and `execute` per batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raises on a bundle that does not load; Triton then keeps the old version."""
        config = json.loads(args["model_config"])
        root = os.environ.get("TIDEMILL_ROOT") or config["parameters"]["root"]["string_value"]
        if root not in sys.path:
            sys.path.insert(0, root)
        from models.registry import import_attribute
        from models.release.bundle import ReleaseError, read_bundle, signature_mismatch

        self.streams = pb_utils.using_decoupled_model_transaction_policy(config)
        self.threads = ThreadPoolExecutor(_STREAMS)
        self.running: dict[str, threading.Event] = {}  # request id -> set once no one waits
        bundle = read_bundle(_bundle_folder(args))
        if why := signature_mismatch(bundle):
            raise ReleaseError(why)
        self.runtime = import_attribute(bundle.runtime)(bundle.path)
        self.signature = bundle.signature

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """One response per request, in order; None where they are sent in parts. Never raises."""
        if self.streams:
            for request in requests:
                self._begin(request)
            return None
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self.threads.shutdown()

    def _begin(self, request: Any) -> None:
        """Starts an answer in parts, or ends one."""
        from models.stream import CANCEL, DEADLINE_MS

        sender = request.get_response_sender()
        cancelled = pb_utils.get_input_tensor_by_name(request, CANCEL)
        if cancelled is not None:
            if (left := self.running.get(cancelled.as_numpy()[0].decode())) is not None:
                left.set()
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        request_id, left = request.request_id(), threading.Event()
        inputs = {name: tensor.copy() for name, tensor in self._inputs(request).items()}
        deadline_ms = json.loads(request.parameters() or "{}").get(DEADLINE_MS)
        end_s = time.monotonic() + deadline_ms / 1e3 if deadline_ms else float("inf")
        self.running[request_id] = left

        def ended() -> bool:
            return left.is_set() or time.monotonic() > end_s or bool(sender.is_cancelled())

        done = self.threads.submit(self._stream, inputs, sender, ended)
        done.add_done_callback(lambda _: self.running.pop(request_id, None))

    def _stream(self, inputs: dict[str, np.ndarray], sender: Any, ended: Any) -> None:
        """Sends the parts of an answer until all are sent or no one waits for them."""
        from models.stream import parts_of

        error = None
        try:
            with contextlib.closing(parts_of(self.runtime, inputs)) as parts:
                while not ended() and (part := next(parts, None)) is not None:
                    sender.send(self._response(part))
        except Exception as failure:
            error = _as_refusal(failure)
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        sender.send(error, flags=final) if error else sender.send(flags=final)

    def _response(self, outputs: dict[str, np.ndarray]) -> Any:
        tensors = [pb_utils.Tensor(s.name, _wire(outputs[s.name])) for s in self.signature.outputs]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _answer(self, request: Any) -> Any:
        try:
            packed = pb_utils.get_input_tensor_by_name(request, "requests")
            if packed is not None:
                return self._answer_many(packed.as_numpy())
            return self._response(self.runtime.infer(self._inputs(request)))
        except Exception as error:
            # A failed request must not fail the others of its batch.
            return _as_refusal(error)

    def _answer_many(self, packed: np.ndarray) -> Any:
        """The answers to several requests in one call (`models.batch`)."""
        from models import batch

        requests: list[Any] = batch.from_bytes(packed[0])
        answers = batch.to_bytes(batch.answer_each(self.runtime, requests))
        tensor = pb_utils.Tensor(batch.ANSWERS, np.array([answers], dtype=np.object_))
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _inputs(self, request: Any) -> dict[str, np.ndarray]:
        given = {s.name: pb_utils.get_input_tensor_by_name(request, s.name) for s in self._specs}
        return {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}

    @property
    def _specs(self) -> tuple[Any, ...]:
        return tuple(self.signature.inputs)


def _bundle_folder(args: dict[str, str]) -> Path:
    from models.stream import base_of

    path = Path(args["model_repository"])
    repository = path.parent if path.name == args["model_name"] else path
    return repository / base_of(args["model_name"]) / args["model_version"] / "bundle"


def _wire(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor)


def _as_refusal(error: Exception) -> Any:
    from models.signature import BadInput

    bad = isinstance(error, BadInput)
    code = pb_utils.TritonError.INVALID_ARG if bad else pb_utils.TritonError.INTERNAL
    text = f"{'BadInput' if bad else type(error).__name__}: {error}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text, code))
