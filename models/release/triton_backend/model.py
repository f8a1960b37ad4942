"""Triton's Python backend for every bundle: loads the bundle's Runtime and calls it.

Knows the backend's calls and how to answer one request with an error. Does not know any
model: `bundle.json` names the class. This file is copied into each version folder. It
imports neither pyarrow, polars nor Feast, because the backend's numpy is 1.26.

A request with invalid tensors gets "BadInput: ..."; other requests of its batch are served.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


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

        bundle = read_bundle(_version_folder(args) / "bundle")
        if why := signature_mismatch(bundle):
            raise ReleaseError(why)
        self.runtime = import_attribute(bundle.runtime)(bundle.path)
        self.signature = bundle.signature

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order. Never raises."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        from models.signature import BadInput

        try:
            packed = pb_utils.get_input_tensor_by_name(request, "requests")
            if packed is not None:
                return self._answer_many(packed.as_numpy())
            outputs = self.runtime.infer(self._inputs(request))
        except BadInput as error:
            return _refusal(f"BadInput: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            # A failed request must not fail the others of its batch.
            return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        tensors = [pb_utils.Tensor(s.name, _wire(outputs[s.name])) for s in self.signature.outputs]
        return pb_utils.InferenceResponse(output_tensors=tensors)

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


def _version_folder(args: dict[str, str]) -> Path:
    path = Path(args["model_repository"])
    folder = path if path.name == args["model_name"] else path / args["model_name"]
    return folder / args["model_version"]


def _wire(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor)


def _refusal(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
