"""The multi-task ranker. This docstring is its model card.

Papers: PLE (Tang et al., RecSys 2020) for the experts; the fusion of task predictions
by per-user weights follows GRADE (arXiv 2510.07919), whose full text was not at hand.

What it is: five tasks (play, long_view, like, follow, order) over two PLE levels; the
candidate attends over the user's last 50 engagements (videos by id and genre); GRADE's
policy (`grade`) gives each user weights on the simplex, and the served score is the
weighted sum of P(action), each over its population rate (`fusion.json` beside the graph).

Kept: own and shared experts with gates at both levels, a simplex of weights per user.
Scaled down: width 32 instead of hundreds, ~150k parameters beside the id tables, three
passes over at most 12,000 encounters and 8,000 slates, so that two cores train it in
tens of seconds. The weights are learned from slates with matured feedback (`fusion`);
where the log holds too few, as replayed histories do, everybody has the declared start
(`training.START`), and so has whom the feature service does not know. Beside the mean of a
user's weights the graph gives the Dirichlet's concentration, from which serving draws where
it explores (`dirichlet`); slots explore too.

Data: point-in-time features of every candidate, its video's and its author's, and how
often either stands in the user's lists. Slates with matured feedback carry
their own negatives. Encounters without an impression (replayed histories) carry none:
five are sampled a group, four evenly from the catalogue of that time and one from the
whole catalogue (also what nobody has met yet), never a video the user ever acted on.
Negatives sampled by popularity would cancel it: what nobody plays then looks as good as
what everybody plays. Where slates are many, the last tenth of them in time is held out
and P(action) is calibrated on it per task (Platt), so that it means impressions at the
first slot; where they are few, it means that sampling, and its order is what serves.
What a slot costs is learned beside the network and left out when it serves.
What was met in a history is not what was liked: the later actions are also learned given
the play (`training.liking_loss`). A feature that did not vary in training (nothing is
shown in a history) is silent until an update has seen it vary.
A task that the data could not show (no order in a history of ratings) is not trained.

Judged: on the last 20 % of time by GAUC within groups against popularity as of each
group's moment (plays so far), on encounters with 20 evenly sampled videos and, where
there are, on slates; there also by ECE and reliability per task. PLE itself beside
shared-bottom, single-task and LightGBM: `python -m benchmarks multitask`. On Taobao's
cart and buy it is ahead of all three (by .002 to .003 of AUC, .003 to .004 of GAUC); on
MovieLens ahead of single-task and LightGBM and short of shared-bottom by .0008 and
.0006; in the simulated world ahead of single-task, and of shared-bottom by AUC (.0015)
but not by GAUC (.0012 short). Where short, the differences are smaller than one seed's
spread, but watched on MovieLens is behind by more than its interval; its labels are
nested (rated, rated >= 4, rated = 5), which may favour sharing everything. What small
data asks: ids that are met a few times are memorised within an epoch, and on Taobao
validation lets the networks do without them; experts that entered as a mean learned
slower than that, so they enter as a sum (`network.Ple`).

What the author's features bring, by `python -m benchmarks authors`, with and without them
on five draws of the demo's world: nothing yet. GAUC -.0001 on encounters (-.0013 to
+.0012) and -.0015 on slates (-.0032 to +.0002, short of the bar, -.002);
the counts in the user's lists alone +.0008 on encounters. That world plants no effect of an author, only films of
one genre and decade, so it bounds what reading them may cost and says nothing of a platform
where people follow people; they are kept for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from models.ranking.grade.served_fusion import FusionTraining, learn_fusion
from models.ranking.ple.calibrate import Calibration, calibrated, held_out, told
from models.ranking.ple.data import (
    Examples,
    encounter_examples,
    impression_examples,
    require_enough,
)
from models.ranking.ple.export import write_bundle
from models.ranking.ple.inputs import (
    GENRE_BUCKETS,
    HISTORY_KINDS,
    SIGNATURE,
    TASKS,
    USER_FEATURES,
    VIDEO_FEATURES,
)
from models.ranking.ple.network import FIRST_KNOWN, Ranker, Size
from models.ranking.ple.tensors import Batch, Vocabulary, batch_of, genres_by_row, vocabulary_of
from models.ranking.ple.train import (
    Training,
    chunks_of,
    fit,
    repeatable,
    standardise,
    start_biases,
    start_fusion,
)
from models.recipe import Evaluation, NotEnoughData, Progress, TrainingLog
from models.release.bundle import write_canary
from models.training.datasets import log_until, split_time_ms
from models.training.evaluation import PerUser, auc_per_user, compare

_POPULARITY = VIDEO_FEATURES.index("log_play_count_all")


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run beside the log and the seed."""

    encounters: int = 12_000
    slates: int = 8_000
    negatives: int = 5
    even_share: float = 1.0
    unmet: int = 1  # negatives a group; without any, what nobody has met yet looks perfect
    judged_encounters: int = 3_000
    judged_negatives: int = 20
    width: int = 32
    without: tuple[str, ...] = ()  # of VIDEO_FEATURES: kept from the network, for ablations
    training: Training = field(default_factory=Training)
    fusion: FusionTraining = field(default_factory=FusionTraining)


@dataclass(frozen=True)
class RankerRecipe:
    """A `models.recipe.Recipe`."""

    config: Config = field(default_factory=Config)
    name: str = "ranker"

    def train(self, log: TrainingLog, bundle: Path, *, seed: int, progress: Progress) -> None:
        """Writes ranker.onnx, weights.pt, vocabulary.npz and a canary into `bundle`."""
        network, vocabulary, batches, _ = self._learn(log, seed, progress)
        progress(0.95, "exporting to ONNX")
        write_bundle(network, vocabulary, bundle)
        write_canary(bundle, canary())
        progress(1.0, f"trained on {sum(map(len, batches))} groups")

    def evaluate(self, log: TrainingLog, *, seed: int, progress: Progress) -> Evaluation:
        """Trains on the log's first 80 % in time; GAUC against popularity on the rest."""
        split = split_time_ms(log)
        network, vocabulary, _, fitted = self._learn(log_until(log, split), seed, progress)
        progress(0.95, "judging on the last 20 % of time")
        judged = [
            (examples, batch_of(log, examples, vocabulary))
            for examples in self._judged(log, split, seed)
            if len(examples)
        ]
        if not judged:
            raise NotEnoughData("the last 20 % of time hold no action to judge by")
        model, popularity = [], []
        for examples, batch in judged:
            model.append(group_auc(examples, scores_of(network, batch)))
            popularity.append(group_auc(examples, batch.video_x[..., _POPULARITY].numpy()))
        progress(1.0, "judged")
        found = compare("GAUC", by_user(model), "popularity", by_user(popularity), seed=seed)
        slates = [batch for examples, batch in judged if examples.release[0]]
        return replace(found, notes=told(network, slates[0] if slates else None, fitted))

    def _learn(
        self, log: TrainingLog, seed: int, progress: Progress
    ) -> tuple[Ranker, Vocabulary, list[Batch], Calibration]:
        require_enough(log)
        config = self.config
        progress(0.0, "gathering examples")
        sources, held = self._training_examples(log, seed)
        vocabulary = vocabulary_of(log)
        batches = []
        for done, examples in enumerate(sources):
            progress(0.05 + 0.2 * done / len(sources), f"features of {len(examples)} groups")
            batches.append(batch_of(log, examples, vocabulary))
        with repeatable(seed, config.training.threads) as generator:
            network = Ranker(size_of(vocabulary, config.width), genres_by_row(log, vocabulary))
            standardise(network, batches, [VIDEO_FEATURES.index(n) for n in config.without])
            start_biases(network, batches)
            start_fusion(network, batches)
            slots = fit(
                network,
                batches,
                config.training,
                generator,
                lambda share, what: progress(0.3 + 0.6 * share, what),
            )
        later = batch_of(log, held, vocabulary) if len(held) else None
        calibration = calibrated(network, later, slots)
        progress(0.92, "the fusion policy")
        for examples, batch in zip(sources, batches, strict=True):
            if examples.impressions:
                learn_fusion(network, batch, examples, config.fusion, seed=seed)
        return network, vocabulary, batches, calibration

    def _training_examples(self, log: TrainingLog, seed: int) -> tuple[list[Examples], Examples]:
        """What is learned from, and the later slates that calibrate (none where few)."""
        config = self.config
        met = encounter_examples(
            log,
            negatives=config.negatives,
            even_share=config.even_share,
            unmet=config.unmet,
            since_ms=0,
            count=config.encounters,
            seed=seed,
        )
        slates, held = held_out(impression_examples(log, count=config.slates))
        return [examples for examples in (met, slates) if len(examples)], held

    def _judged(self, log: TrainingLog, split_ms: int, seed: int) -> list[Examples]:
        met = encounter_examples(
            log,
            negatives=self.config.judged_negatives,
            even_share=1.0,
            since_ms=split_ms,
            count=self.config.judged_encounters,
            seed=seed + 1,
        )
        return [met, impression_examples(log, count=self.config.slates).since(split_ms)]


def recipe() -> RankerRecipe:
    """The ranker as the catalogue names it."""
    return RankerRecipe()


def size_of(vocabulary: Vocabulary, width: int) -> Size:
    return Size(
        users=FIRST_KNOWN + len(vocabulary.user),
        videos=FIRST_KNOWN + len(vocabulary.video),
        authors=FIRST_KNOWN + len(vocabulary.author),
        user_x=len(USER_FEATURES),
        video_x=len(VIDEO_FEATURES),
        genres=GENRE_BUCKETS,
        kinds=len(HISTORY_KINDS) + 1,
        tasks=len(TASKS),
        width=width,
    )


@torch.no_grad()
def scores_of(
    network: Ranker, batch: Batch, groups: int = 512, *, drawn: np.ndarray | None = None
) -> np.ndarray:
    """Served scores of every candidate; float32 [G, C].

    drawn: float32 [G, T], weights that ranked instead of the user's own where they are not
    NaN (`Examples.weights`): then these are the scores that a slate was drawn by.
    """
    own = torch.full((len(batch), len(TASKS)), torch.nan)
    told = own if drawn is None else torch.from_numpy(drawn)
    parts = []
    for rows in chunks_of(torch.arange(len(batch)), groups):
        logits, weights, _ = network(*batch.take(rows).inputs())
        parts.append(network.fuse(logits, torch.where(told[rows].isnan(), weights, told[rows])))
    scores: np.ndarray = torch.cat(parts).numpy()
    return scores


def group_auc(examples: Examples, scores: np.ndarray) -> tuple[np.ndarray, PerUser]:
    """AUC within each group that has both an action and none, beside the users of all groups.

    scores: float [G, C].
    """
    group, place = np.nonzero(examples.real)
    judged = auc_per_user(group, scores[group, place], examples.acted[group, place])
    return examples.users, judged


def by_user(sources: Sequence[tuple[np.ndarray, PerUser]]) -> PerUser:
    """Mean AUC of each user's groups, weighted by how many groups the user has."""
    users = np.concatenate([names[judged.users] for names, judged in sources]).astype(str)
    values = np.concatenate([judged.value for _, judged in sources])
    names, codes = np.unique(users, return_inverse=True)
    count = np.bincount(codes, minlength=len(names)).astype(float)
    return PerUser(names, np.bincount(codes, values, len(names)) / np.maximum(count, 1), count)


def canary(candidates: int = 3) -> dict[str, np.ndarray]:
    """A request of unknown ids and small features, for the self-test before going live."""
    rng = np.random.default_rng(0)
    tensors = {}
    for spec in SIGNATURE.inputs:
        shape = tuple(candidates if size < 0 else size for size in spec.shape)
        floats = spec.dtype == "FP32"
        tensors[spec.name] = (
            rng.random(shape).astype(np.float32) if floats else rng.integers(0, 3, shape)
        )
    return tensors
