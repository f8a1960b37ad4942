"""The self-test model: it returns its inputs, to verify that tensors arrive unchanged.

Knows three dtypes. Does not know any other model. A Triton backend with an incompatible numpy
corrupts tensors silently; this model detects it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec("floats", "FP32", (-1,)),
        TensorSpec("integers", "INT64", (-1,)),
        TensorSpec("texts", "BYTES", (-1,)),
    ),
    outputs=(
        TensorSpec("floats_out", "FP32", (-1,)),
        TensorSpec("integers_out", "INT64", (-1,)),
        TensorSpec("texts_out", "BYTES", (-1,)),
    ),
)


class EchoRuntime:
    """A `models.recipe.Runtime` without weights."""

    signature = SIGNATURE

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.signature.check_inputs(inputs)
        return {f"{spec.name}_out": inputs[spec.name] for spec in self.signature.inputs}


def probe_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors that an incompatible numpy would corrupt."""
    rng = np.random.default_rng(seed)
    return {
        "floats": rng.normal(size=257).astype(np.float32),
        "integers": rng.integers(-(2**62), 2**62, 129),
        "texts": np.array([f"tide-{n}-ü".encode() for n in range(33)], object),
    }


def echo_matches(sent: Mapping[str, np.ndarray], received: Mapping[str, np.ndarray]) -> bool:
    """Whether every tensor returned bit for bit."""
    return all(np.array_equal(tensor, received[f"{name}_out"]) for name, tensor in sent.items())
