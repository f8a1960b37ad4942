"""The model client on Triton Inference Server, over gRPC.

Knows tensors, versions, deadlines and trace headers. Does not know what any model
means. Implements `models.client.ModelClient`, answers in parts over a stream
(`serving.clients.triton_stream`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    serialize_byte_tensor,
)

from models.batch import ANSWERS, REQUESTS, Answer, from_bytes, to_bytes
from models.client import ModelProcessDied, ModelUnavailable
from models.signature import BadInput
from models.stream import stream_form
from serving.clients.triton_stream import SharedStream

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
        self._stream = SharedStream(address, _CHANNEL)

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

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """As the contract says. The stream carries no headers of a single request."""
        started = False
        try:
            with closing(self._parts(model, inputs, version, timeout_s)) as parts:
                for part in parts:
                    started = True
                    yield part
        except _NoStreamingForm:
            if started:
                raise
            yield self._call(model, inputs, version, timeout_s, headers)

    def _parts(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        version: int | None,
        timeout_s: float,
    ) -> Generator[dict[str, np.ndarray], None, None]:
        asked = _request(stream_form(model), version, inputs)
        try:
            with closing(self._stream.parts(asked, timeout_s)) as replies:
                for reply in replies:
                    yield _tensors(grpcclient.InferResult(reply))
        except InferenceServerException as error:
            raise _as_stream_error(model, version, error) from error

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
        return _tensors(result)

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
            for name in self._forms(model):
                self._client.load_model(name, client_timeout=_LOAD_S)
        except InferenceServerException as error:
            raise ModelUnavailable(
                f"Triton could not load {model}: {error.message()}; the versions already loaded stay"
            ) from error

    def _forms(self, model: str) -> list[str]:
        """The model's name, and its streaming form's where the repository has one."""
        index = self._client.get_model_repository_index(client_timeout=_CONTROL_S)
        stored = {entry.name for entry in index.models}
        return [model, *({stream_form(model)} & stored)]

    def reload(self, model: str) -> None:
        """Unloads first: a load of unchanged files does nothing, even if the process is dead."""
        for name in (stream_form(model), model):
            with contextlib.suppress(InferenceServerException):  # it may not be loaded
                self._client.unload_model(name, client_timeout=_CONTROL_S)
        self.load(model)

    def healthy(self) -> bool:
        try:
            return bool(self._client.is_server_ready(client_timeout=_CONTROL_S))
        except InferenceServerException:
            return False

    def close(self) -> None:
        self._stream.close()
        self._client.close()


class _NoStreamingForm(ModelUnavailable):
    """The server has no streaming form of the model's version."""


def _tensors(result: Any) -> dict[str, np.ndarray]:
    names = [output.name for output in result.get_response().outputs]
    return {name: result.as_numpy(name) for name in names}


def _request(name: str, version: int | None, inputs: Mapping[str, np.ndarray]) -> Any:
    """The request as a message, for calls that tritonclient does not make."""
    asked = service_pb2.ModelInferRequest(
        model_name=name, model_version="" if version is None else str(version)
    )
    for each, tensor in inputs.items():
        sent, dtype = _wire(each, tensor)
        asked.inputs.add(name=each, datatype=dtype, shape=list(sent.shape))
        raw = serialize_byte_tensor(sent).item() if dtype == "BYTES" else sent.tobytes()
        asked.raw_input_contents.append(raw)
    return asked


def _wire(name: str, tensor: np.ndarray) -> tuple[np.ndarray, str]:
    """The tensor as it is sent, and Triton's name of its dtype."""
    if tensor.dtype.kind in "US":
        tensor = tensor.astype(object)
    dtype = np_to_triton_dtype(tensor.dtype)
    if dtype is None:
        raise BadInput(f"input {name!r} has dtype {tensor.dtype}, which Triton does not support")
    return np.ascontiguousarray(tensor), dtype


def _input(name: str, tensor: np.ndarray) -> Any:
    sent, dtype = _wire(name, tensor)
    tensor_input = grpcclient.InferInput(name, list(sent.shape), dtype)
    tensor_input.set_data_from_numpy(sent)
    return tensor_input


def _as_stream_error(model: str, version: int | None, error: InferenceServerException) -> Exception:
    """A stream's errors have texts only, unless the stream itself is lost."""
    text = str(error.message() or "")
    if "BadInput: " in text or "inference input" in text:
        return BadInput(f"{model}: {text}")
    if "unknown model" in text:
        return _NoStreamingForm(f"{model}: {text}")
    return _as_model_error(model, version, error)


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
