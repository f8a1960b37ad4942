"""A model that answers step by step as its request says, for the laws of streams.

Triton's backend imports it from the checkout, by its path.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np

from models.signature import BadInput, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec("count", "INT64", (1,)),
        TensorSpec("pause_ms", "INT64", (1,)),  # before each part but the first; -1: see `gate_of`
        TensorSpec("fails_at", "INT64", (1,)),  # the part that cannot be made; -1: none
        TensorSpec("trace", "BYTES", (1,)),  # a file with a line for each part that was made
    ),
    outputs=(TensorSpec("number", "INT64", (-1,)), TensorSpec("text", "BYTES", (-1,))),
)


class ToyRuntime:
    """A `models.stream.StreamRuntime` that counts."""

    signature: Signature = SIGNATURE

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = list(self.infer_stream(inputs))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def infer_stream(
        self, inputs: Mapping[str, np.ndarray]
    ) -> Generator[dict[str, np.ndarray], None, None]:
        self.signature.check_inputs(inputs)
        if inputs["count"][0] < 1:
            raise BadInput("input 'count' is below 1")
        trace = inputs["trace"][0]
        for n in range(int(inputs["count"][0])):
            if n:
                _wait(int(inputs["pause_ms"][0]), trace.decode())
            if n == inputs["fails_at"][0]:
                raise RuntimeError(f"no part {n}")
            if trace:
                with open(trace.decode(), "a") as file:
                    file.write(f"{n}\n")
            yield {"number": np.array([n]), "text": np.array([f"ü{n}".encode()], object)}


def gate_of(trace: str) -> Path:
    """The file that has to exist before the second part is made."""
    return Path(trace + ".gate")


def _wait(pause_ms: int, trace: str) -> None:
    if pause_ms >= 0:
        time.sleep(pause_ms / 1e3)
    while pause_ms < 0 and not gate_of(trace).exists():
        time.sleep(0.01)


def request(
    count: int, *, pause_ms: int = 0, fails_at: int = -1, trace: str = ""
) -> dict[str, np.ndarray]:
    return {
        "count": np.array([count]),
        "pause_ms": np.array([pause_ms]),
        "fails_at": np.array([fails_at]),
        "trace": np.array([trace.encode()], object),
    }
