"""Several requests to one model in one call, and their answers.

Knows tensors as bytes, and how a runtime answers several requests. Does not know servers. Numpy
and the standard library only: Triton's backend imports it. A request is carried whole, so requests
of one call may differ in every shape, and an invalid one does not fail the others.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from models.signature import BadInput

REQUESTS, ANSWERS = "requests", "answers"  # names of the BYTES tensors [1] that carry them
Tensors = Mapping[str, np.ndarray]
Answer = dict[str, np.ndarray] | BadInput
_DTYPES = {"f4": np.float32, "i8": np.int64, "i4": np.int32, "O": np.object_}
_HEAD = struct.Struct("<Q")  # bytes of the JSON that describes what follows


@runtime_checkable
class BatchRuntime(Protocol):
    """A `models.recipe.Runtime` that answers several requests faster than one by one."""

    def infer_many(self, requests: Sequence[Tensors]) -> list[Answer]:
        """One answer for each request, in order; `BadInput` for an invalid one."""


class OneRuntime(Protocol):
    """The part of `models.recipe.Runtime` that this module needs."""

    def infer(self, inputs: Tensors, /) -> dict[str, np.ndarray]: ...


def answer_each(runtime: OneRuntime, requests: Sequence[Tensors]) -> list[Answer]:
    """One answer for each request, in order; `BadInput` for an invalid one."""
    if isinstance(runtime, BatchRuntime):
        return runtime.infer_many(requests)
    return [_answer(runtime, request) for request in requests]


def _answer(runtime: OneRuntime, request: Tensors) -> Answer:
    try:
        return runtime.infer(request)
    except BadInput as error:
        return error


def to_bytes(each: Sequence[Tensors | BadInput]) -> bytes:
    """Requests or answers as bytes. Raises `BadInput` for a dtype that no signature has."""
    heads: list[Any] = []
    parts: list[bytes] = []
    for one in each:
        if isinstance(one, BadInput):
            heads.append(str(one))
            continue
        described = []
        for name, tensor in one.items():
            raw, kind = _tensor_bytes(name, tensor)
            described.append([name, kind, list(tensor.shape), len(raw)])
            parts.append(raw)
        heads.append(described)
    head = json.dumps(heads).encode()
    return b"".join([_HEAD.pack(len(head)), head, *parts])


def from_bytes(data: bytes) -> list[Answer]:
    """What `to_bytes` wrote. Numbers are read-only views of `data`.

    Raises `BadInput` for other bytes.
    """
    try:
        (size,) = _HEAD.unpack_from(data)
        at = _HEAD.size + size
        found: list[Answer] = []
        for described in json.loads(data[_HEAD.size : at]):
            if isinstance(described, str):
                found.append(BadInput(described))
                continue
            tensors = {}
            for name, kind, shape, length in described:
                tensors[name] = _tensor(data[at : at + length], kind, shape)
                at += length
            found.append(tensors)
        return found
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise BadInput(f"a batch cannot be read: {error}") from error


def _tensor_bytes(name: str, tensor: np.ndarray) -> tuple[bytes, str]:
    if tensor.dtype.kind in "OSU":
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in tensor.ravel().tolist()]
        sizes = np.array([len(text) for text in texts], "<i8")
        return sizes.tobytes() + b"".join(texts), "O"
    kind = f"{tensor.dtype.kind}{tensor.dtype.itemsize}"
    if kind not in _DTYPES:
        raise BadInput(f"input {name!r} has dtype {tensor.dtype}, which no signature has")
    return np.ascontiguousarray(tensor).astype(f"<{kind}", copy=False).tobytes(), kind


def _tensor(raw: bytes, kind: str, shape: list[int]) -> np.ndarray:
    if kind != "O":
        return np.frombuffer(raw, _DTYPES[kind]).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    ends = np.cumsum(np.frombuffer(raw, "<i8", count)) + 8 * count
    starts = [8 * count, *ends.tolist()][:count]
    texts = np.empty(count, dtype=np.object_)
    texts[:] = [raw[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]
    return texts.reshape(shape)
