"""The model client on Triton Inference Server, over gRPC.

Knows tensors, versions, deadlines and trace headers. Does not know what any model
means. Implements `models.client.ModelClient` on one channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from models.batch import ANSWERS, REQUESTS, Answer, from_bytes, to_bytes
from models.client import ModelProcessDied, ModelUnavailable
from models.signature import BadInput

# Reconnect quickly once the server is back; until then each request's own deadline applies. The
# "minimum" is also how long one attempt to connect may take: a busy machine needs more than 100 ms,
# and a call that has no connection yet, as of a promotion, fails with the attempt.
_CHANNEL = [
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_CONTROL_S = 2.0
_LOAD_S = 120.0


class TritonClient:
    """`address` is host:port of Triton's gRPC endpoint. Thread safe."""

    ends_calls_in_time = True  # gRPC returns at `timeout_s`, whatever the server does

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Any = grpcclient.InferenceServerClient(address, channel_args=_CHANNEL)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        return self._call(model, inputs, version, timeout_s, headers)

    def infer_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> list[Answer]:
        if not requests:
            return []
        packed = {REQUESTS: np.array([to_bytes(requests)], dtype=np.object_)}
        return from_bytes(self._call(model, packed, version, timeout_s, headers)[ANSWERS][0])

    def _call(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        version: int | None,
        timeout_s: float,
        headers: Mapping[str, str] | None,
    ) -> dict[str, np.ndarray]:
        try:
            result = self._client.infer(
                model,
                [_input(name, tensor) for name, tensor in inputs.items()],
                model_version="" if version is None else str(version),
                client_timeout=timeout_s,
                headers=dict(headers or {}),
            )
        except InferenceServerException as error:
            raise _as_model_error(model, version, error) from error
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}

    def versions(self, model: str) -> tuple[int, ...]:
        return self.loaded().get(model, ())

    def loaded(self) -> dict[str, tuple[int, ...]]:
        """Every model's ready versions, ascending.

        Raises:
            ModelUnavailable: the server does not answer.
        """
        try:
            index = self._client.get_model_repository_index(client_timeout=_CONTROL_S)
        except InferenceServerException as error:
            raise _as_model_error("the repository", None, error) from error
        found: dict[str, list[int]] = {}
        for entry in index.models:
            if entry.state == "READY" and entry.version:
                found.setdefault(entry.name, []).append(int(entry.version))
        return {name: tuple(sorted(versions)) for name, versions in found.items()}

    def load(self, model: str) -> None:
        """Loads without unloading first: old versions serve until the new one is ready."""
        try:
            self._client.load_model(model, client_timeout=_LOAD_S)
        except InferenceServerException as error:
            raise ModelUnavailable(
                f"Triton could not load {model}: {error.message()}; the versions already loaded stay"
            ) from error

    def reload(self, model: str) -> None:
        """Unloads first: a load of unchanged files does nothing, even if the process is dead."""
        with contextlib.suppress(InferenceServerException):  # it may not be loaded
            self._client.unload_model(model, client_timeout=_CONTROL_S)
        self.load(model)

    def healthy(self) -> bool:
        try:
            return bool(self._client.is_server_ready(client_timeout=_CONTROL_S))
        except InferenceServerException:
            return False

    def close(self) -> None:
        self._client.close()


def _input(name: str, tensor: np.ndarray) -> Any:
    if tensor.dtype.kind in "US":
        tensor = tensor.astype(object)
    dtype = np_to_triton_dtype(tensor.dtype)
    if dtype is None:
        raise BadInput(f"input {name!r} has dtype {tensor.dtype}, which Triton does not support")
    tensor_input = grpcclient.InferInput(name, list(tensor.shape), dtype)
    tensor_input.set_data_from_numpy(np.ascontiguousarray(tensor))
    return tensor_input


def _as_model_error(model: str, version: int | None, error: InferenceServerException) -> Exception:
    status, text = str(error.status() or ""), str(error.message() or error)
    pinned = model if version is None else f"{model} version {version}"
    if status == "StatusCode.INVALID_ARGUMENT":
        return BadInput(f"{pinned}: {text}")
    if status == "StatusCode.DEADLINE_EXCEEDED":
        return ModelUnavailable(f"{pinned} did not answer in time")
    if status == "StatusCode.UNAVAILABLE":
        return ModelUnavailable("Triton cannot be reached")
    reason = f"{pinned}: {text.splitlines()[0][:200] if text else status}"
    if "Stub process" in text and "not healthy" in text:  # 1 s without a sign of life
        return ModelProcessDied(reason)
    return ModelUnavailable(reason)
