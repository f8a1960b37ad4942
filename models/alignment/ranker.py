"""The ranker's challenger: taught by earlier slates, judged on later ones.

Both halves go on from the incumbent: P(action) by preference (`preference`), with the
weights held; then the fusion policy by groups (`models.ranking.grade.served_fusion`), with P(action)
held, near the policy that served. One gate judges what comes of both.

Knows how a ranker's bundle becomes another. Does not know releases' order or servers
(`models.training.update`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.alignment.gate import Rules, Verdict, judge
from models.alignment.pairs import preferences
from models.alignment.preference import Alignment, align
from models.ranking.grade.served_fusion import FusionTraining, learn_fusion
from models.ranking.ple.data import Examples, impression_examples
from models.ranking.ple.export import read_network, write_bundle
from models.ranking.ple.recipe import canary, scores_of
from models.ranking.ple.tensors import batch_of
from models.ranking.ple.train import awaken
from models.recipe import NotEnoughData, Progress, TrainingLog
from models.release.bundle import write_canary


@dataclass(frozen=True)
class RankerUpdate:
    """A `models.training.update.Challenge`."""

    slates: int = 8_000
    train_share: float = 0.7  # the earlier part in time
    min_slates: int = 100
    min_preferences: int = 50
    alignment: Alignment = field(default_factory=Alignment)
    fusion: FusionTraining = field(default_factory=FusionTraining)
    rules: Rules = field(default_factory=Rules)

    def challenge(
        self, incumbent: Path, log: TrainingLog, bundle: Path, *, seed: int, progress: Progress
    ) -> Verdict:
        """Aligns the incumbent on `log.feedback` (since the watermark), writes the challenger.

        Raises `NotEnoughData` with what is missing.
        """
        progress(0.0, "gathering slates with matured feedback")
        earlier, later = self._split(impression_examples(log, count=self.slates))
        wanted = preferences(earlier)
        if len(wanted) < self.min_preferences:
            raise NotEnoughData(
                f"{len(wanted)} preferences in {len(earlier)} slates, {self.min_preferences} "
                "needed: something must be acted on below something passed over"
            )
        network, vocabulary = read_network(incumbent)
        progress(0.1, f"features of {len(earlier) + len(later)} slates")
        batch, judged = (batch_of(log, part, vocabulary) for part in (earlier, later))
        policy = deepcopy(network)
        awaken(policy, [batch])
        aligned = align(
            policy,
            batch,
            wanted,
            self.alignment,
            seed=seed,
            progress=lambda share, what: progress(0.4 + 0.4 * share, what),
        )
        progress(0.82, "the fusion policy")
        learn_fusion(aligned, batch, earlier, self.fusion, seed=seed)
        progress(0.85, "judging forward in time and off-policy")
        verdict = judge(
            later,
            scores_of(network, judged),
            scores_of(aligned, judged),
            self.rules,
            seed=seed,
            logged=scores_of(network, judged, drawn=later.weights),
        )
        write_bundle(aligned, vocabulary, bundle)
        write_canary(bundle, canary())
        progress(1.0, "judged")
        return verdict

    def _split(self, slates: Examples) -> tuple[Examples, Examples]:
        """Earlier and later slates; a moment belongs to one side only."""
        if len(slates) < self.min_slates:
            raise NotEnoughData(
                f"{len(slates)} slates with matured feedback since the last update, "
                f"{self.min_slates} needed"
            )
        cut = int(np.quantile(slates.time_ms, self.train_share))
        return slates.before(cut), slates.since(cut)


def update() -> RankerUpdate:
    """The ranker's update as `models.training.update` names it."""
    return RankerUpdate()
