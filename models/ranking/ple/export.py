"""A trained ranker on disk: the ONNX graph for serving, the weights for further training.

Knows the files of a ranker's bundle. Does not know how it was trained. `weights.pt` holds
tensors only and is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from models.ranking.ple.config import RankerSize
from models.ranking.ple.features import GENRE_BUCKETS, HISTORY, ITEM_FEATURES, USER_FEATURES
from models.ranking.ple.inputs import SIGNATURE
from models.ranking.ple.network import Ranker
from models.ranking.ple.runtime import ONNX_FILE, TASKS
from models.ranking.ple.tensors import RankerVocabulary
from models.ranking.tasks import RankerTasks
from models.release.bundle import ReleaseError
from models.retrieval.factorisation.config import PARTS

WEIGHTS_FILE = "weights.pt"
FUSION_FILE = "fusion.json"  # rates and start of the graph, for readers


class OneRequest(nn.Module):
    """The network without its batch dimension: one user, C candidates."""

    def __init__(self, network: Ranker) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        user: Tensor,
        user_x: Tensor,
        history: Tensor,
        history_kind: Tensor,
        item: Tensor,
        author: Tensor,
        genres: Tensor,
        item_x: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """p [C, T], weights [T], alpha [T], rates [T], score [C]."""
        rest = (user_x, history, history_kind, item, author, genres, item_x)
        logits, weights, score = self.network(user, *(each.unsqueeze(0) for each in rest))
        alpha = self.network.alpha(user_x.unsqueeze(0))
        rates = self.network.rates + 0 * weights[0]  # ONNX: an output must depend on an input
        return logits[0].sigmoid(), weights[0], alpha[0], rates, score[0]


def write_bundle(network: Ranker, vocabulary: RankerVocabulary, folder: Path) -> None:
    """Writes graph, weights, tasks, vocabulary and liking factors into `folder`."""
    network.eval()
    vocabulary.save(folder)
    network.tasks.save(folder)
    torch.save({"size": asdict(network.size), "state": network.state_dict()}, folder / WEIGHTS_FILE)
    (folder / FUSION_FILE).write_text(json.dumps(fusion_of(network), indent=1))
    _write_graph(OneRequest(network), folder / ONNX_FILE)


def fusion_of(network: Ranker) -> dict[str, object]:
    """Each task's population rate and start weight, and whether weights are personal."""
    return {
        "rates": dict(zip(network.tasks.names, network.rates.tolist(), strict=True)),
        "start": dict(zip(network.tasks.names, network.start.tolist(), strict=True)),
        "personal": bool(network.personal),
    }


def _write_graph(request: OneRequest, path: Path) -> None:
    names = ["user", "user_x", "history", "history_kind", "video", "author", "genres", "video_x"]
    with warnings.catch_warnings():
        # The tracing exporter writes this graph in 0.3 s. torch.export takes 25 s on a busy
        # core, for the same answers at the same speed; an update cannot wait for that.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            request,
            example_inputs(candidates=3),
            str(path),
            input_names=names,
            output_names=[spec.name for spec in SIGNATURE.outputs if spec.name != TASKS],
            dynamic_axes={name: {0: "candidates"} for name in [*names[4:], "p", "score"]},
            dynamo=False,
        )


def read_network(folder: Path) -> tuple[Ranker, RankerVocabulary]:
    """The network of a bundle and its vocabulary, for further training.

    Raises:
        ReleaseError: the bundle has another architecture or other features than this code.
    """
    stored = torch.load(folder / WEIGHTS_FILE, weights_only=True)
    size = RankerSize(**stored["size"])
    genres = torch.zeros_like(stored["state"]["genres_of_video"])
    network = Ranker(size, genres, RankerTasks.read(folder))
    try:
        if (size.user_x, size.video_x) != (len(USER_FEATURES), len(ITEM_FEATURES)):
            raise RuntimeError("the number of features differs")
        network.load_state_dict(stored["state"])
    except RuntimeError as error:
        raise ReleaseError(
            f"the ranker in {folder} has another architecture or other features and cannot be "
            "trained or compared: `tidemill models train ranker` makes a new one"
        ) from error
    return network.eval(), RankerVocabulary.read(folder)


def example_inputs(candidates: int) -> tuple[Tensor, ...]:
    """Zeros of one request's shapes, as `OneRequest.forward` takes them."""

    def rows(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    return (
        rows(1),
        torch.zeros(len(USER_FEATURES)),
        rows(HISTORY),
        rows(HISTORY),
        rows(candidates),
        rows(candidates),
        torch.zeros(candidates, GENRE_BUCKETS),
        torch.zeros(candidates, len(ITEM_FEATURES) + len(PARTS)),
    )
