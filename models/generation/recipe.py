"""Recipe of the query recommender: training, evaluation and its bundle.

The model card is README.md. Knows the order of steps and the baseline. Does not know losses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.generation import bundle as files
from models.generation.config import QueriesConfig
from models.generation.data import QueryClick, items_of, query_clicks
from models.generation.inputs import canary_request
from models.generation.network import TorchNetwork, export_onnx, write_weights
from models.generation.prompt import most_frequent
from models.generation.recommend import recommend_queries
from models.generation.runtime import QueriesRuntime
from models.generation.train import TrainedQueries, train_queries
from models.generation.words import split_words
from models.recipe import Evaluation, NotEnoughData, TrainingLog
from models.release.canary import write_canary
from models.training.datasets import log_until, split_time_ms
from models.training.evaluation import compare, mean_per_user, mrr
from streams.progress import ProgressCallback

DEPTH = 10  # queries evaluated per request


class QueriesRecipe:
    """`models.recipe.Recipe` of the query recommender."""

    name = "queries"

    def __init__(self, config: QueriesConfig | None = None) -> None:
        self.config = config or QueriesConfig()

    def train(
        self, log: TrainingLog, bundle: Path, *, seed: int, progress: ProgressCallback
    ) -> None:
        """Trains on `log` and writes the bundle. Raises `NotEnoughData`."""
        trained = train_queries(log, self.config, seed=seed, progress=progress)
        write_bundle(trained, bundle)
        write_canary(bundle, canary_request(trained.lexicon.genres_of), QueriesRuntime)

    def evaluate(self, log: TrainingLog, *, seed: int, progress: ProgressCallback) -> Evaluation:
        """MRR@10 on the last fifth of the log's query clicks. Raises `NotEnoughData`."""
        split_ms = split_time_ms(log, kinds=("query_click",))
        clicks = query_clicks(log, items_of(log))
        blocked = {split_words(text) for text in log.blocked_queries}
        later = [
            click
            for click in clicks
            if click.time_ms >= split_ms and split_words(click.query) not in blocked
        ]
        if not later:
            raise NotEnoughData("no query click in the last fifth of the log: gather more events")
        past = log_until(log, split_ms)
        trained = train_queries(past, self.config, seed=seed, progress=progress)
        rng = np.random.default_rng(seed)
        size = min(len(later), self.config.max_evaluated)
        picked = [later[n] for n in rng.choice(len(later), size, replace=False)]
        return _compare_with_most_clicked(trained, picked, seed)


def recipe() -> QueriesRecipe:
    """The recipe that `models.registry` names."""
    return QueriesRecipe()


def write_bundle(trained: TrainedQueries, folder: Path) -> None:
    """Writes tables, texts, weights and both ONNX graphs into `folder`."""
    files.write_query_bundle(folder, trained.lexicon, trained.tables)
    write_weights(trained.network, folder)
    export_onnx(trained.network, str(folder / files.READER), str(folder / files.WRITER))


def _compare_with_most_clicked(
    trained: TrainedQueries, clicks: list[QueryClick], seed: int
) -> Evaluation:
    network = TorchNetwork(trained.network)
    targets = [split_words(click.query) for click in clicks]
    ours, baseline = [], []
    for click in clicks:
        found = recommend_queries(network, trained.lexicon, trained.tables, click.context, k=DEPTH)
        ours.append([split_words(suggestion.query) for suggestion in found])
        baseline.append(_most_clicked(trained, click))
    users = np.array([click.user_id for click in clicks])
    return compare(
        f"MRR@{DEPTH}",
        mean_per_user(users, mrr(ours, targets)),
        "the item's most frequent legal query",
        mean_per_user(users, mrr(baseline, targets)),
        seed=seed,
    )


def _most_clicked(trained: TrainedQueries, click: QueryClick) -> list[tuple[str, ...]]:
    """The baseline's list: legal queries by clicks under the item until now, newest first among
    equals, then the most clicked ones of all items."""
    queries = trained.lexicon.queries
    under = most_frequent([str(n) for n in queries.found(click.earlier[::-1])], DEPTH)
    ranked = list(dict.fromkeys([int(n) for n in under] + trained.popular))[:DEPTH]
    return [split_words(queries.texts[n]) for n in ranked]
