"""Tensor signatures: names, dtypes and shapes of a served model's inputs and outputs.

Knows names, dtypes and shapes. Does not know torch, Triton or ONNX. A dimension of -1 is free.
There is no batch dimension for Triton to merge requests on: one request is one user, and
candidates are the first axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_DTYPES = {"FP32": np.float32, "INT64": np.int64, "INT32": np.int32, "BYTES": np.object_}

_KINDS = {"FP32": "f", "INT64": "i", "INT32": "i", "BYTES": "O"}


@dataclass(frozen=True)
class TensorSpec:
    name: str
    dtype: str  # Triton's name: FP32, INT64, INT32, BYTES
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> type:
        return _DTYPES[self.dtype]

    def allows(self, other: TensorSpec) -> bool:
        """Whether every tensor of `other` is one of this: a free dimension allows any size."""
        return (self.name, self.dtype, len(self.shape)) == (
            other.name,
            other.dtype,
            len(other.shape),
        ) and all(a in (-1, b) for a, b in zip(self.shape, other.shape, strict=True))


@dataclass(frozen=True)
class Signature:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check_inputs(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Checks that all inputs have the stated dtype and shape and finite floats.

        Raises `BadInput`, naming the tensor.
        """
        for spec in self.inputs:
            if spec.name not in tensors:
                raise BadInput(f"input {spec.name!r} is missing")
            _check(spec, tensors[spec.name])

    def unmet_by(self, sealed: Signature, later_outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of the tensors, sorted, by which a bundle of the signature `sealed` does not fit
        requests of this one: () where it answers them.

        later_outputs: what bundles of before lack.
        """
        answered = {spec.name: spec for spec in sealed.outputs}
        wrong = {spec.name for spec in {*self.inputs} ^ {*sealed.inputs}}
        for spec in self.outputs:
            found = answered.pop(spec.name, None)
            if found is None and spec.name in later_outputs:
                continue
            if found is None or not spec.allows(found):
                wrong.add(spec.name)
        return tuple(sorted(wrong | answered.keys()))


def byte_list(texts: Sequence[str]) -> np.ndarray:
    """BYTES tensor of UTF-8 texts [max(1, N)]; an empty list becomes one empty string.

    Servers disagree about BYTES tensors of length 0, so none is ever sent.
    """
    encoded = [text.encode("utf-8", "replace") for text in texts] or [b""]
    return np.array(encoded, dtype=np.object_)


def text_list(tensor: np.ndarray) -> list[str]:
    """The texts of a BYTES tensor, empty ones left out; undecodable bytes are replaced."""
    texts = (
        raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw) for raw in tensor
    )
    return [text for text in texts if text]


class BadInput(ValueError):
    """The request does not fit the model's signature; the message names the tensor."""


def _check(spec: TensorSpec, tensor: np.ndarray) -> None:
    if tensor.ndim != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, tensor.shape, strict=True)
    ):
        raise BadInput(f"input {spec.name!r} has shape {tensor.shape}, expected {spec.shape}")
    if tensor.dtype.kind != _KINDS[spec.dtype]:
        raise BadInput(f"input {spec.name!r} is {tensor.dtype}, expected {spec.dtype}")
    if spec.dtype == "FP32" and not np.isfinite(tensor).all():
        raise BadInput(f"input {spec.name!r} holds NaN or infinity")
