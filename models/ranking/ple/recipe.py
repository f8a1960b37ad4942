"""Recipe of the multi-task ranker: training, evaluation and its bundle.

The model card is README.md. Knows the order of training's steps. Does not know losses or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from models.ranking.grade.served_fusion import learn_fusion
from models.ranking.ple.calibrate import (
    RankerCalibration,
    calibrate_held_out,
    calibration_report,
    held_out,
    shrink_experts,
)
from models.ranking.ple.config import RankerConfig, RankerSize
from models.ranking.ple.data import (
    RankerExamples,
    check_enough_data,
    impression_examples,
    unlogged_examples,
)
from models.ranking.ple.export import write_bundle
from models.ranking.ple.features import GENRE_BUCKETS, HISTORY_KINDS, ITEM_FEATURES, USER_FEATURES
from models.ranking.ple.inputs import SIGNATURE
from models.ranking.ple.network import FIRST_KNOWN, Ranker
from models.ranking.ple.runtime import RankerRuntime
from models.ranking.ple.tensors import (
    RankerBatch,
    RankerVocabulary,
    build_batch,
    build_vocabulary,
    genres_by_row,
    with_unseen_liking,
)
from models.ranking.ple.train import (
    init_fusion,
    init_liking,
    init_standardisation,
    init_task_biases,
    seeded_torch,
    split_rows,
    train_ranker,
)
from models.ranking.tasks import SHIPPED_TASKS, RankerTasks, tasks_in_force
from models.recipe import Evaluation, NotEnoughData, TrainingLog
from models.release.canary import write_canary
from models.retrieval.factorisation.train import cross_fit
from models.training.actions import opening
from models.training.datasets import log_until, split_time_ms
from models.training.evaluation import PerUser, auc_per_user, compare
from streams.progress import ProgressCallback

_POPULARITY = ITEM_FEATURES.index("log_play_count_all")


@dataclass(frozen=True)
class RankerRecipe:
    """A `models.recipe.Recipe`."""

    config: RankerConfig = field(default_factory=RankerConfig)
    name: str = "ranker"

    def train(
        self, log: TrainingLog, bundle: Path, *, seed: int, progress: ProgressCallback
    ) -> None:
        """Writes ranker.onnx, weights.pt, vocabulary.npz, factors.npz and a canary into `bundle`."""
        network, vocabulary, batches, _ = self._learn(log, seed, progress)
        progress(0.95, "exporting to ONNX")
        write_bundle(network, vocabulary, bundle)
        write_canary(bundle, canary_request(), RankerRuntime)
        progress(1.0, f"trained on {sum(map(len, batches))} groups")

    def evaluate(self, log: TrainingLog, *, seed: int, progress: ProgressCallback) -> Evaluation:
        """Trains on the first 80 % of the log's time; GAUC against popularity on the rest: which
        items a user liked among those met, and acted on among those shown.

        Raises `NotEnoughData` where the last 20 % hold no action.
        """
        split = split_time_ms(log)
        network, vocabulary, _, fitted = self._learn(log_until(log, split), seed, progress)
        progress(0.95, "evaluating on the last 20 % of time")
        evaluated = [
            (examples, build_batch(log, examples, vocabulary))
            for examples in self._evaluation_examples(log, split, seed, network.tasks)
            if len(examples)
        ]
        if not evaluated:
            raise NotEnoughData("the last 20 % of time hold no action to evaluate on")
        model, popularity = [], []
        for examples, batch in evaluated:
            auc = group_auc if examples.impressions else liked_auc
            model.append(auc(examples, served_scores(network, batch)))
            popularity.append(auc(examples, batch.item_x[..., _POPULARITY].numpy()))
        progress(1.0, "evaluated")
        found = compare(
            "GAUC", mean_auc_by_user(model), "popularity", mean_auc_by_user(popularity), seed=seed
        )
        slates = [batch for examples, batch in evaluated if examples.release[0]]
        return replace(
            found, notes=calibration_report(network, slates[0] if slates else None, fitted)
        )

    def _learn(
        self, log: TrainingLog, seed: int, progress: ProgressCallback
    ) -> tuple[Ranker, RankerVocabulary, list[RankerBatch], RankerCalibration]:
        tasks = tasks_in_force(opening(log))
        check_enough_data(log, tasks)
        config = self.config
        progress(0.0, "building examples")
        sources, held = self._training_examples(log, seed, tasks)
        fitted = cross_fit(log, config.liking, seed=seed)
        progress(0.05, "liking factors are fitted")
        vocabulary = build_vocabulary(log)
        batches = []
        for done, examples in enumerate(sources):
            progress(0.05 + 0.2 * done / len(sources), f"features of {len(examples)} groups")
            batches.append(with_unseen_liking(build_batch(log, examples, vocabulary), fitted))
        vocabulary = replace(vocabulary, factors=fitted.factors)
        with seeded_torch(seed, config.training.threads) as generator:
            size = ranker_size(vocabulary, config.width, tasks)
            network = Ranker(size, genres_by_row(log, vocabulary), tasks)
            init_standardisation(network, batches, [ITEM_FEATURES.index(n) for n in config.without])
            init_liking(network, fitted)
            init_task_biases(network, batches)
            init_fusion(network, batches)
            slots = train_ranker(
                network,
                batches,
                config.training,
                generator,
                lambda share, what: progress(0.3 + 0.6 * share, what),
            )
        later = None
        if len(held):
            later = with_unseen_liking(build_batch(log, held, vocabulary), fitted)
        shrink_experts(network, later, slots)
        calibration = calibrate_held_out(network, later, slots)
        progress(0.92, "the fusion policy")
        for examples, batch in zip(sources, batches, strict=True):
            if examples.impressions:
                learn_fusion(network, batch, examples, config.fusion, seed=seed)
        return network, vocabulary, batches, calibration

    def _training_examples(
        self, log: TrainingLog, seed: int, tasks: RankerTasks
    ) -> tuple[list[RankerExamples], RankerExamples]:
        """Training examples by source, and later slates for calibration (none where few)."""
        config = self.config
        interactions = unlogged_examples(
            log,
            negatives=0,
            uniform_share=1.0,
            since_ms=0,
            count=config.interactions,
            seed=seed,
            tasks=tasks,
        )
        slates, held = held_out(impression_examples(log, count=config.slates, tasks=tasks))
        return [examples for examples in (interactions, slates) if len(examples)], held

    def _evaluation_examples(
        self, log: TrainingLog, split_ms: int, seed: int, tasks: RankerTasks
    ) -> list[RankerExamples]:
        interactions = unlogged_examples(
            log,
            negatives=0,
            uniform_share=1.0,
            since_ms=split_ms,
            count=self.config.evaluated_interactions,
            seed=seed + 1,
            tasks=tasks,
        )
        slates = impression_examples(log, count=self.config.slates, tasks=tasks)
        return [interactions, slates.since(split_ms)]


def recipe() -> RankerRecipe:
    """The recipe that `models.registry` names."""
    return RankerRecipe()


def ranker_size(
    vocabulary: RankerVocabulary, width: int, tasks: RankerTasks = SHIPPED_TASKS
) -> RankerSize:
    """The network's size for a vocabulary."""
    return RankerSize(
        users=FIRST_KNOWN + len(vocabulary.user),
        videos=FIRST_KNOWN + len(vocabulary.item),
        authors=FIRST_KNOWN + len(vocabulary.author),
        user_x=len(USER_FEATURES),
        video_x=len(ITEM_FEATURES),
        genres=GENRE_BUCKETS,
        kinds=len(HISTORY_KINDS) + 1,
        tasks=len(tasks),
        width=width,
    )


@torch.no_grad()
def served_scores(
    network: Ranker, batch: RankerBatch, groups: int = 512, *, drawn: np.ndarray | None = None
) -> np.ndarray:
    """Served scores of every candidate; float32 [G, C].

    drawn: float32 [G, T], used in place of the user's own weights where not NaN
    (`RankerExamples.weights`); the result is then the scores that the slate was ranked by.
    """
    own = torch.full((len(batch), len(network.tasks)), torch.nan)
    ranked_by = own if drawn is None else torch.from_numpy(drawn)
    parts = []
    for rows in split_rows(torch.arange(len(batch)), groups):
        logits, weights, _ = network(*batch.take(rows).inputs())
        parts.append(
            network.fuse(logits, torch.where(ranked_by[rows].isnan(), weights, ranked_by[rows]))
        )
    scores: np.ndarray = torch.cat(parts).numpy()
    return scores


def liked_auc(examples: RankerExamples, scores: np.ndarray) -> tuple[np.ndarray, PerUser]:
    """The users of unlogged interactions, and each user's AUC of liked items among those met.

    scores: float [G, 1]. An item is liked where an action followed the play.
    """
    names, user = np.unique(examples.users.astype(str), return_inverse=True)
    liked: np.ndarray = np.asarray(examples.labels[:, 0, examples.tasks.later].any(-1))
    return names, auc_per_user(user, scores[:, 0], liked)


def group_auc(examples: RankerExamples, scores: np.ndarray) -> tuple[np.ndarray, PerUser]:
    """The users of all groups, and the AUC within each group with both outcomes.

    scores: float [G, C].
    """
    group, place = np.nonzero(examples.real)
    return examples.users, auc_per_user(group, scores[group, place], examples.acted[group, place])


def mean_auc_by_user(sources: Sequence[tuple[np.ndarray, PerUser]]) -> PerUser:
    """Mean AUC of each user's groups, weighted by the user's number of groups."""
    users = np.concatenate([names[groups.users] for names, groups in sources]).astype(str)
    values = np.concatenate([groups.value for _, groups in sources])
    names, codes = np.unique(users, return_inverse=True)
    count = np.bincount(codes, minlength=len(names)).astype(float)
    return PerUser(names, np.bincount(codes, values, len(names)) / np.maximum(count, 1), count)


def canary_request(candidates: int = 3) -> dict[str, np.ndarray]:
    """A request with unknown ids and small features, for the self-test before going live."""
    rng = np.random.default_rng(0)
    tensors = {}
    for spec in SIGNATURE.inputs:
        shape = tuple(candidates if size < 0 else size for size in spec.shape)
        floats = spec.dtype == "FP32"
        tensors[spec.name] = (
            rng.random(shape).astype(np.float32) if floats else rng.integers(0, 3, shape)
        )
    return tensors
