"""An echo model for Triton, small enough to read at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 0
input [ {{ name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

MODEL = """\
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        assert np.__version__.startswith("1.26"), np.__version__
        import onnxruntime, polars, torch, streams.contract.topics  # the project's, behind numpy 1.26
        arrays = [pb.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", a * np.float32(2))]) for a in arrays]
"""


@pytest.fixture
def write_doubling_model():
    """Writes a model that doubles what it is sent into a repository."""

    def write(repository: Path, name: str) -> None:
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))

    return write
