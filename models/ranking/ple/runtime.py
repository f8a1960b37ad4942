"""The served ranker: ONNX Runtime over an exported bundle, in Triton and in process alike.

Knows the bundle's files and how ids become rows of the embedding tables; an id that was not
in training falls into the cold bucket, and a user who was not gets liking factors from the
history. Does not know torch or features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from models.ranking.ple.features import HISTORY_KINDS, ITEM_FEATURES
from models.ranking.ple.inputs import SIGNATURE, liking_of_kinds
from models.ranking.tasks import RankerTasks
from models.retrieval.factorisation.config import PARTS
from models.retrieval.factorisation.factors import LikingFactors
from models.signature import BadInput, Signature

ONNX_FILE = "ranker.onnx"
VOCABULARY_FILE = "vocabulary.npz"
TASKS = "tasks"  # of the bundle, not of the graph
# One thread: requests are parallel, and a candidate set is small.
_THREADS = 1
_CANDIDATE_INPUTS = ("video_hash", "author_hash", "genres", "video_x")


class RankerRuntime:
    """A `models.recipe.Runtime`. Stateless after loading; safe from several threads."""

    signature: Signature = SIGNATURE

    def __init__(self, bundle: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = _THREADS
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(bundle / ONNX_FILE), options, providers=["CPUExecutionProvider"]
        )
        widths = {each.name: each.shape[-1] for each in self._session.get_inputs()}
        # A bundle that was sealed before the ranker knew liking takes the item's features alone.
        self._knows_liking = widths["video_x"] == len(ITEM_FEATURES) + len(PARTS)
        with np.load(bundle / VOCABULARY_FILE) as stored:
            self._known = {name: stored[name] for name in ("user", "video", "author")}
        self._tasks = RankerTasks.read(bundle)
        self._factors = LikingFactors.read(bundle)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """p [C, T], weights [T], alpha [T], rates [T], score [C], float32; tasks int64 [T]; C may
        be 0.

        Raises `BadInput` for tensors outside the signature or of unequal candidates.
        """
        self.signature.check_inputs(inputs)
        count = len(inputs["video_hash"])
        for name in _CANDIDATE_INPUTS:
            if len(inputs[name]) != count:
                raise BadInput(f"input {name!r} has {len(inputs[name])} candidates, not {count}")
        names = [spec.name for spec in self.signature.outputs if spec.name != TASKS]
        outputs = self._session.run(names, self._feed(inputs, count))
        found = dict(zip(names, (np.asarray(each, np.float32) for each in outputs), strict=True))
        cut = {name: found[name][:count] for name in ("p", "score")}
        return found | cut | {TASKS: self._tasks.numbers}

    def _feed(self, inputs: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        # The graph needs at least one candidate: without any, a row of zeros is fed and cut off.
        fill = {n: inputs[n] if count else _one_zero_row(inputs[n]) for n in _CANDIDATE_INPUTS}
        return {
            "user": rows_of(self._known["user"], inputs["user_hash"]),
            "user_x": inputs["user_x"],
            "history": rows_of(self._known["video"], inputs["history"]),
            "history_kind": np.clip(inputs["history_kind"], 0, len(HISTORY_KINDS)),
            "video": rows_of(self._known["video"], fill["video_hash"]),
            "author": rows_of(self._known["author"], fill["author_hash"]),
            "genres": fill["genres"],
            "video_x": self._item_columns(inputs, fill),
        }

    def _item_columns(
        self, inputs: Mapping[str, np.ndarray], fill: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        if not self._knows_liking:
            return fill["video_x"]
        liking = self._liking(inputs, fill["video_hash"])
        return np.hstack([fill["video_x"], liking], dtype=np.float32, casting="same_kind")

    def _liking(self, inputs: Mapping[str, np.ndarray], item_hashes: np.ndarray) -> np.ndarray:
        """float32 [C, 3]: the parts of the user's liking of each candidate."""
        liking = liking_of_kinds(inputs["history_kind"])
        vector = self._factors.vector(int(inputs["user_hash"][0]), inputs["history"], liking)
        return self._factors.parts(vector, item_hashes)


def rows_of(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Embedding rows of id hashes: 0 for none, 1 (cold) for an unknown id, else 2 + its index.

    known: int64 [K], ascending; hashes: int64 of any shape.
    """
    place = np.searchsorted(known, hashes)
    found = place < len(known)
    found[found] = known[place[found]] == hashes[found]
    return np.where(hashes == 0, 0, np.where(found, place + 2, 1)).astype(np.int64)


def _one_zero_row(tensor: np.ndarray) -> np.ndarray:
    return np.zeros((1, *tensor.shape[1:]), tensor.dtype)
