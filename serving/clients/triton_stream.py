"""Answers in parts from Triton: one gRPC stream, which all requests share.

Knows messages, deadlines and which reply belongs to which request. Does not know models. A request
is cancelled by a message to its model's host (`models.release.triton_backend.model`). The stream
itself is never cancelled: Triton 2.51 crashes if a stream is cancelled while it ends.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Generator, Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from models.stream import CANCEL, DEADLINE_MS

_OUT_OF_TIME = InferenceServerException("no part in time", "StatusCode.DEADLINE_EXCEEDED")


class SharedStream:
    """Opened by the first request, and again after it was lost. Thread safe."""

    def __init__(self, address: str, options: Sequence[tuple[str, int]]) -> None:
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._open: _OpenStream | None = None
        self._lock = threading.Lock()

    def parts(self, asked: Any, timeout_s: float) -> Generator[Any, None, None]:
        """The replies (`ModelInferResponse`) to a `ModelInferRequest` without an id.

        `timeout_s` is that of all replies. Where it is not exhausted, the request is cancelled.
        Raises `InferenceServerException`: an error, the time, or a lost stream.
        """
        end_s = time.monotonic() + timeout_s
        asked.id = uuid.uuid4().hex
        asked.parameters[DEADLINE_MS].int64_param = max(int(timeout_s * 1e3), 1)
        asked.parameters["triton_enable_empty_final_response"].bool_param = True
        stream, ended = self._opened(), False
        arrived = stream.ask(asked)
        try:
            while not ended:
                try:
                    reply = arrived.get(timeout=max(end_s - time.monotonic(), 0.0))
                except queue.Empty:
                    raise _OUT_OF_TIME from None
                ended = reply.ends
                if reply.error is not None:
                    raise reply.error
                if reply.message.outputs:
                    yield reply.message
        finally:
            stream.forget(asked.id)
            if not ended:
                stream.send(_cancellation(asked))

    def close(self) -> None:
        with self._lock:
            if self._open is not None:
                self._open.end()
        self._channel.close()

    def _opened(self) -> _OpenStream:
        with self._lock:
            if self._open is None or self._open.lost:
                self._open = _OpenStream(self._stub)
            return self._open


class _Reply:
    """One reply. ends: the request's last; error: in place of a message."""

    def __init__(self, message: Any, error: InferenceServerException | None = None) -> None:
        self.message, self.error = message, error
        final = "triton_final_response"
        self.ends = error is not None or bool(
            final in message.parameters and message.parameters[final].bool_param
        )


class _OpenStream:
    """One call of ModelStreamInfer, read by a thread of its own until it is lost."""

    def __init__(self, stub: Any) -> None:
        self.lost = False
        self._sending: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: dict[str, queue.SimpleQueue[_Reply]] = {}
        self._lock = threading.Lock()
        replies = stub.ModelStreamInfer(iter(self._sending.get, None))
        threading.Thread(target=self._read, args=(replies,), name="triton", daemon=True).start()

    def ask(self, asked: Any) -> queue.SimpleQueue[_Reply]:
        """Where the replies to the request arrive."""
        arrived: queue.SimpleQueue[_Reply] = queue.SimpleQueue()
        with self._lock:
            if self.lost:
                arrived.put(_Reply(None, InferenceServerException("lost", _UNAVAILABLE)))
            else:
                self._waiting[asked.id] = arrived
                self._sending.put(asked)
        return arrived

    def send(self, message: Any) -> None:
        self._sending.put(message)

    def forget(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def end(self) -> None:
        """Sends no more; the server then ends the stream."""
        self._sending.put(None)

    def _read(self, replies: Any) -> None:
        failure = InferenceServerException("the stream ended", _UNAVAILABLE)
        try:
            for reply in replies:
                arrived = self._waiting.get(reply.infer_response.id)
                if arrived is not None:
                    text = reply.error_message
                    error = InferenceServerException(text) if text else None
                    arrived.put(_Reply(reply.infer_response, error))
        except grpc.RpcError as error:
            failure = InferenceServerException(str(error.details()), str(error.code()))
        with self._lock:
            self.lost, left = True, list(self._waiting.values())
        self._sending.put(None)  # ends grpc's thread that sends
        for arrived in left:
            arrived.put(_Reply(None, failure))


_UNAVAILABLE = "StatusCode.UNAVAILABLE"


def _cancellation(asked: Any) -> Any:
    cancelled = service_pb2.ModelInferRequest(
        id=uuid.uuid4().hex, model_name=asked.model_name, model_version=asked.model_version
    )
    cancelled.inputs.add(name=CANCEL, datatype="BYTES", shape=[1])
    text = np.array([asked.id.encode()], np.object_)
    cancelled.raw_input_contents.append(serialize_byte_tensor(text).item())
    return cancelled
