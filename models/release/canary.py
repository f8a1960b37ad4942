"""Canaries: a request to a model with the answer that it gave when its bundle was sealed.

Knows the canary's two files in a bundle and which answers are right. Does not know servers or
when a canary is sent. Imports no runtime: a gateway checks answers without loading models.

An answer depends on the bundle and on the code that runs it. The stored answer therefore names
the code; after an upgrade that changed it, only the form of an answer is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import models.layers
from models.registry import REGISTRY, ModelSpec, moved
from models.signature import TensorSpec

if TYPE_CHECKING:
    from models.recipe import Runtime

REQUEST, ANSWER = "canary.npz", "canary_answer.npz"
TOLERANCE = 1e-4  # absolute and relative, of float outputs
_CODE = "code of the runtime"


@dataclass(frozen=True)
class Canary:
    """A request and its right answer; `answer` None: only the form of an answer is checked."""

    request: Mapping[str, np.ndarray]
    answer: Mapping[str, np.ndarray] | None = None


def write_canary(folder: Path, request: Mapping[str, np.ndarray], runtime: type[Runtime]) -> None:
    """Stores a request and the answer of `runtime` to it in a written, unsealed bundle.

    BYTES tensors are object arrays of bytes; they are stored as fixed-width bytes.
    """
    code = code_digest(f"{runtime.__module__}:{runtime.__qualname__}")
    _save(folder / REQUEST, request)
    _save(folder / ANSWER, {**runtime(folder).infer(request), _CODE: np.array(code)})


def read_canary(folder: Path, runtime: str = "") -> Canary | None:
    """The bundle's canary; None where it has none.

    runtime: "module:Class" of the bundle. The answer is left out where the code of the runtime
    has changed since, or where the bundle has none.
    """
    if not (folder / REQUEST).is_file():
        return None
    request = _load(folder / REQUEST)
    if not (folder / ANSWER).is_file():
        return Canary(request)
    answer = _load(folder / ANSWER)
    code = str(answer.pop(_CODE, ""))
    return Canary(request, answer if runtime and code == code_digest(runtime) else None)


def code_digest(runtime: str) -> str:
    """sha256 of the files that compute a runtime's answers: its folder and the layers."""
    spec = find_spec(moved(runtime.partition(":")[0]))
    folders = [Path(str(models.layers.__file__)).parent]
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent)
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def wrong_answer(model: str, canary: Canary, given: Mapping[str, np.ndarray]) -> str:
    """Why `given` is not the answer of a sound model to its canary; "" where it is.

    A sound answer has every output in its stated shape, finite numbers, and scores that differ
    between candidates that differ. Where the right answer is known, it must equal that.
    """
    entry = REGISTRY.get(model)
    if entry is not None:
        found = _malformed(entry, given) or _indifferent(entry, canary.request, given)
        if found:
            return found
    for name, expected in (canary.answer or {}).items():
        if name not in given or not _equal_within_tolerance(expected, given[name]):
            return f"answers its canary with another {name!r} than its bundle"
    return ""


def _malformed(entry: ModelSpec, given: Mapping[str, np.ndarray]) -> str:
    for spec in entry.load_signature().outputs:
        tensor = given.get(spec.name)
        if tensor is None and spec.name in entry.later_outputs:
            continue
        if tensor is None:
            return f"answers its canary without {spec.name!r}"
        if not _has_shape(spec, tensor):
            return f"answers its canary with {spec.name!r} of shape {tensor.shape}"
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            return f"answers its canary with NaN or infinity in {spec.name!r}"
    aligned = [(name, given[name]) for name in entry.aligned_outputs if name in given]
    for name, tensor in aligned:
        if tensor.shape[-1] != aligned[0][1].shape[-1]:
            return f"answers its canary with {name!r} of shape {tensor.shape}"
    return ""


def _has_shape(spec: TensorSpec, tensor: np.ndarray) -> bool:
    return tensor.ndim == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, tensor.shape, strict=True)
    )


def _indifferent(
    entry: ModelSpec, request: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]
) -> str:
    """Outputs with one row per candidate: another number of rows, or the same row for all."""
    rows = [request[name] for name in entry.candidate_inputs]
    if not rows:
        return ""
    count = len(rows[0])
    differ = any((tensor != tensor[:1]).any() for tensor in rows if len(tensor))
    for name in entry.candidate_outputs:
        tensor = given[name]
        if len(tensor) != count:
            return f"answers its canary with {len(tensor)} rows of {name!r}, not {count}"
        if differ and count > 1 and not (tensor != tensor[:1]).any():
            return f"answers its canary with the same {name!r} for every candidate"
    return ""


def _equal_within_tolerance(expected: np.ndarray, served: np.ndarray) -> bool:
    if expected.shape != served.shape:
        return False
    if expected.dtype.kind == "f":
        return bool(np.allclose(expected, served, rtol=TOLERANCE, atol=TOLERANCE))
    return bool(np.array_equal(expected, served))


def _save(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    plain = {k: v.astype(np.bytes_) if v.dtype == object else v for k, v in tensors.items()}
    np.savez(path, **plain)  # type: ignore[arg-type]


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        raw = {name: stored[name] for name in stored.files}
    return {k: v.astype(object) if v.dtype.kind == "S" else v for k, v in raw.items()}
