"""OneBar, small: the query that a user is likely to click under a video, word by word.

Model card
----------
Paper: OneBar, query recommendation in a video feed, arXiv 2606.15330. From its abstract:
one generator replaces recall and rank; its input is what is playing, noisy text metadata
and the user's history, squeezed into a short schema; *collaborative anchors*, queries that
behaviour ties to the video, are part of it; preference is learnt progressively from
exposure, click and order.
Kept: the encoder-decoder (2 + 2 layers), the short schema of segments (title, genres,
anchors, the user's queries, the user's taste), anchors, beam search. Added: a trie of
legal queries, so that nothing else can come out, and probabilities normalised over the
trie's children in training as in decoding, so that they sum to 1 over the legal queries;
anchors also enter as pointers (log-shares of what was clicked, with learned gates), which
is why the model need not spend its few weights on copying.
Scaled down: width 64 and whole words in place of a pre-trained BART and word pieces; no
multimodal summary; clicks only, no preference stage nor on-policy distillation (a later
`models.alignment` step has the feedback for both).
Legal: a query is legal when at least `min_users` people used it and nobody took it down.
Fails where: a video that nobody typed anything under gets what its words and the user's
taste suggest; a query with words that the log never held cannot be written at all.
Judged by MRR@10 of the clicked query against the video's most frequent legal query, which
sees every click up to the moment of the request; the model's bundle anchors are older.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.generation import bundle as files
from models.generation.data import Click, items_of, query_clicks
from models.generation.network import TorchNetwork, export
from models.generation.prompt import most_frequent
from models.generation.recommend import recommend
from models.generation.train import Config, Trained, fit
from models.generation.words import words
from models.recipe import Evaluation, NotEnoughData, Progress, TrainingLog
from models.training.evaluation import compare, mean_per_user, mrr

DEPTH = 10  # queries judged per request


class QueriesRecipe:
    """`models.recipe.Recipe` of the query recommender."""

    name = "queries"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()

    def train(self, log: TrainingLog, bundle: Path, *, seed: int, progress: Progress) -> None:
        """Trains on `log` and writes the bundle. Raises `NotEnoughData`."""
        write_bundle(fit(log, self.config, seed=seed, progress=progress), bundle)

    def evaluate(self, log: TrainingLog, *, seed: int, progress: Progress) -> Evaluation:
        """MRR@10 on the clicks of the last fifth of the log's time span."""
        split_ms = split_time(log)
        clicks = query_clicks(log, items_of(log))
        judged = [click for click in clicks if click.time_ms >= split_ms]
        if not judged:
            raise NotEnoughData("no query click in the last fifth of the log: gather more events")
        trained = fit(before(log, split_ms), self.config, seed=seed, progress=progress)
        rng = np.random.default_rng(seed)
        size = min(len(judged), self.config.max_judged)
        picked = [judged[n] for n in rng.choice(len(judged), size, replace=False)]
        return _judge(trained, picked, seed)


def recipe() -> QueriesRecipe:
    return QueriesRecipe()


def split_time(log: TrainingLog) -> int:
    """The time below which four fifths of the log's query clicks lie."""
    times = log.events.filter(pl.col("kind") == "query_click")["event_time_ms"]
    quantile = times.quantile(0.8)
    return log.until_ms if quantile is None else int(quantile)


def before(log: TrainingLog, until_ms: int) -> TrainingLog:
    """The log as it stood at `until_ms`."""
    return TrainingLog(
        log.events.filter(pl.col("event_time_ms") < until_ms), log.items, log.feedback, until_ms
    )


def write_bundle(trained: Trained, folder: Path) -> None:
    files.write(folder, trained.lexicon, trained.tables)
    export(trained.network, str(folder / files.READER), str(folder / files.WRITER))


def _judge(trained: Trained, clicks: list[Click], seed: int) -> Evaluation:
    network = TorchNetwork(trained.network)
    targets = [words(click.query) for click in clicks]
    ours, theirs = [], []
    for click in clicks:
        found = recommend(network, trained.lexicon, trained.tables, click.context, k=DEPTH)
        ours.append([words(suggestion.query) for suggestion in found])
        theirs.append(_most_clicked(trained, click))
    users = np.array([click.user_id for click in clicks])
    return compare(
        f"MRR@{DEPTH}",
        mean_per_user(users, mrr(ours, targets)),
        "the video's most frequent legal query",
        mean_per_user(users, mrr(theirs, targets)),
        seed=seed,
    )


def _most_clicked(trained: Trained, click: Click) -> list[tuple[str, ...]]:
    """The baseline's list: legal queries by clicks under the video until now, newest first
    among equals, then the crowd's most clicked ones."""
    queries = trained.lexicon.queries
    under = most_frequent([str(n) for n in queries.found(click.earlier[::-1])], DEPTH)
    ranked = list(dict.fromkeys([int(n) for n in under] + trained.popular))[:DEPTH]
    return [words(queries.texts[n]) for n in ranked]
