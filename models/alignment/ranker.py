"""The ranker's challenger: trained on earlier slates, gated on later ones.

Both halves continue from the incumbent. P(action) learns from what was acted on, which an
incumbent of replayed histories has never seen, then from preferences (`ranker_policy`), with the
weights held. Then the fusion policy learns (`models.ranking.grade.served_fusion`), with P(action)
held and near the served policy. One gate decides on both.

Knows how a ranker's bundle becomes another. Does not know releases or servers
(`models.training.update`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from models.alignment.gate import GateResult, GateThresholds, evaluate_challenger
from models.alignment.pairs import preference_pairs
from models.alignment.ranker_policy import AlignmentConfig, align_ranker
from models.alignment.slices import feed_guards
from models.ranking.grade.config import FusionTraining
from models.ranking.grade.served_fusion import learn_fusion
from models.ranking.ple.config import RankerTraining
from models.ranking.ple.data import RankerExamples, impression_examples
from models.ranking.ple.export import read_network, write_bundle
from models.ranking.ple.recipe import canary_request, served_scores
from models.ranking.ple.runtime import RankerRuntime
from models.ranking.ple.tensors import build_batch
from models.ranking.ple.train import init_unfrozen_features, seeded_torch, train_ranker
from models.recipe import NotEnoughData, TrainingLog
from models.release.canary import write_canary
from streams.progress import ProgressCallback, no_progress


@dataclass(frozen=True)
class RankerUpdate:
    """A `models.training.update.Challenge`."""

    slates: int = 8_000
    train_share: float = 0.7  # the earlier part in time
    min_slates: int = 100
    min_preferences: int = 50
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    training: RankerTraining = field(default_factory=lambda: RankerTraining(epochs=8, groups=64))
    fusion: FusionTraining = field(default_factory=FusionTraining)
    rules: GateThresholds = field(default_factory=GateThresholds)

    def challenge(
        self,
        incumbent: Path,
        log: TrainingLog,
        bundle: Path,
        *,
        seed: int,
        progress: ProgressCallback,
    ) -> GateResult:
        """Aligns the incumbent on `log.feedback` (since the watermark) and writes the challenger.

        Raises `NotEnoughData` with what is missing.
        """
        progress(0.0, "reading slates with matured feedback")
        network, vocabulary = read_network(incumbent)
        # The incumbent's own tasks: a declaration since then is learned by the next training.
        slates = impression_examples(log, count=self.slates, tasks=network.tasks)
        earlier, later = self._split(slates)
        wanted = preference_pairs(earlier)
        if len(wanted) < self.min_preferences:
            raise NotEnoughData(
                f"{len(wanted)} preferences in {len(earlier)} slates, {self.min_preferences} "
                "needed: an action on a candidate below one that was passed over"
            )
        progress(0.1, f"features of {len(earlier) + len(later)} slates")
        batch, later_batch = (build_batch(log, part, vocabulary) for part in (earlier, later))
        policy = deepcopy(network)
        init_unfrozen_features(policy, [batch])
        progress(0.35, "what was played of these slates")
        with seeded_torch(seed, self.training.threads) as generator:
            train_ranker(policy, [batch], self.training, generator, no_progress)
        aligned, preference = align_ranker(
            policy,
            batch,
            wanted,
            self.alignment,
            seed=seed,
            progress=lambda share, what: progress(0.4 + 0.4 * share, what),
        )
        progress(0.82, "training the fusion policy")
        fusion = learn_fusion(aligned, batch, earlier, self.fusion, seed=seed)
        progress(0.85, "evaluating on later slates and off-policy")
        verdict = evaluate_challenger(
            later,
            served_scores(network, later_batch),
            served_scores(aligned, later_batch),
            self.rules,
            seed=seed,
            logged=served_scores(network, later_batch, drawn=later.weights),
            guards=feed_guards(log, later),
        )
        write_bundle(aligned, vocabulary, bundle)
        write_canary(bundle, canary_request(), RankerRuntime)
        progress(1.0, "gated")
        return replace(verdict, updates=tuple(each for each in (preference, fusion) if each))

    def preview(self, log: TrainingLog) -> str:
        """What `challenge` would train on and compare; nothing is trained.

        Raises `NotEnoughData` with what is missing.
        """
        earlier, later = self._split(impression_examples(log, count=self.slates))
        return (
            f"incumbent and challenger, trained on {len(earlier)} earlier slates, on {len(later)} "
            f"later ones: GAUC of feedback (at most {self.rules.gauc_margin} below 0) and off-policy "
            f"value by SNIPS and doubly robust (at most {self.rules.value_margin:.0%} below 0), "
            "each by its 95 % interval"
        )

    def _split(self, slates: RankerExamples) -> tuple[RankerExamples, RankerExamples]:
        """Earlier and later slates, split by time of serving."""
        if len(slates) < self.min_slates:
            raise NotEnoughData(
                f"{len(slates)} slates with matured feedback since the last update, "
                f"{self.min_slates} needed"
            )
        split_ms = int(np.quantile(slates.time_ms, self.train_share))
        return slates.before(split_ms), slates.since(split_ms)


def ranker_update() -> RankerUpdate:
    """The update that `models.training.update` names."""
    return RankerUpdate()
