"""RoleGen, small: what may bring a silent user back, as a path of items with roles to a goal.

Model card
----------
Paper: RoleGen, reactivation of dormant users, arXiv 2602.13134. From its abstract: users
who engage but convert little; a reasoner names each item's functional role in context and
rebuilds how intent evolved; counterfactual inference proposes several ways to conversion,
against collapse onto one interest; candidates condition a generative backbone; a loop of
reasoning, execution, feedback and reflection.
Kept: five roles (trigger, bridge, comparison, converter, noise) inferred in context,
planning backwards from several hypothetical goals, the goals not taken given beside the
one that was, P(convert) per item.
Scaled down: the role reasoner is a hidden Markov model fitted by EM over session position,
kind of action, gap and novelty, not a language model; the backbone is a blend of counted
transitions (F1), a ridge regression from history to what came next, and popularity, with
weights fitted on the training span's last fifth; P(convert) is a logistic regression, then
Platt-scaled on held-out engagements. No reflection: a later update has the feedback.
Roles are latent: nothing in real logs says that they are right, only that they fit better
than chance orders; against planted roles they are judged in the simulated world.
Fails where: a user of unknown videos gets popular items; more than `max_items` videos are
cut to the most engaged ones.
Judged by Recall@10 of the next session's new videos, on sessions after the split by users
with a history, against the last session again. **That floor is weak**: MovieLens users
rate a film once, so the last session's videos hardly ever return. `evaluate_all` puts
popularity and F1 beside it, which are the floors to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.layers.transitions import decayed
from models.reasoning.data import Config, before, read_histories, split_time
from models.reasoning.reasoner import F1_DECAY, HISTORY, Reasoner
from models.reasoning.sessions import Steps
from models.reasoning.train import fit
from models.recipe import Evaluation, NotEnoughData, Progress, TrainingLog
from models.training.evaluation import compare, mean_per_user, recall_at_k

DEPTH = 10


@dataclass(frozen=True)
class Case:
    """One session after the split: what was known before it, and its new videos."""

    user_id: str
    done: Steps
    now_ms: int
    wanted: frozenset[int]


class ReactivationRecipe:
    """`models.recipe.Recipe` of the dormant-user reasoner."""

    name = "reactivation"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()

    def train(self, log: TrainingLog, bundle: Path, *, seed: int, progress: Progress) -> None:
        """Fits on `log` and writes the bundle. Raises `NotEnoughData`. Nothing is random."""
        del seed
        fit(log, self.config, progress).write(bundle)

    def evaluate(self, log: TrainingLog, *, seed: int, progress: Progress) -> Evaluation:
        """Recall@10 against the last session again; see the card for why that is weak."""
        return self.evaluate_all(log, seed=seed, progress=progress)["the last session again"]

    def evaluate_all(
        self, log: TrainingLog, *, seed: int, progress: Progress
    ) -> dict[str, Evaluation]:
        """The same trajectories against every floor, over the same users."""
        split_ms = split_time(log)
        reasoner = fit(before(log, split_ms), self.config, progress)
        cases = _cases(log, reasoner, split_ms)
        if not cases:
            raise NotEnoughData(
                "no user with a history has a session in the last fifth of the log: "
                "gather events over a longer time"
            )
        rng = np.random.default_rng(seed)
        if len(cases) > self.config.max_judged:
            picked = rng.choice(len(cases), self.config.max_judged, replace=False)
            cases = [cases[n] for n in picked]
        return _judge(reasoner, cases, seed)


def recipe() -> ReactivationRecipe:
    return ReactivationRecipe()


def _cases(log: TrainingLog, reasoner: Reasoner, split_ms: int) -> list[Case]:
    """Sessions that begin after the split, by users who were there before."""
    cases = []
    for user_id, whole in read_histories(log, reasoner.number).items():
        for session in np.unique(whole.session[whole.time_ms >= split_ms]):
            now = whole.session == session
            earlier = np.flatnonzero(whole.session < session)[-HISTORY:]
            start_ms = int(whole.time_ms[now].min())
            new = frozenset(whole.item[now].tolist()) - set(whole.item[earlier].tolist())
            if len(earlier) and start_ms >= split_ms and new:
                cases.append(Case(user_id, pick(whole, earlier), start_ms, new))
    return cases


def pick(whole: Steps, rows: np.ndarray) -> Steps:
    return Steps(whole.item[rows], whole.kind[rows], whole.time_ms[rows], whole.session[rows])


def _judge(reasoner: Reasoner, cases: list[Case], seed: int) -> dict[str, Evaluation]:
    wanted: list[set[object]] = [set(case.wanted) for case in cases]
    users = np.array([case.user_id for case in cases])
    plans = [reasoner.plan(case.done, DEPTH, case.now_ms) for case in cases]
    ours: list[list[int]] = [plan.items if plan else [] for plan in plans]
    floors = {
        "the last session again": [_last_session(case.done) for case in cases],
        "popularity": [_top(reasoner, reasoner.popular, case.done) for case in cases],
        "F1 transitions": [_top(reasoner, _f1(reasoner, case.done), case.done) for case in cases],
    }
    value = mean_per_user(users, recall_at_k(ours, wanted, DEPTH))
    return {
        name: compare(
            f"recall@{DEPTH}",
            value,
            name,
            mean_per_user(users, recall_at_k(ranked, wanted, DEPTH)),
            seed=seed,
        )
        for name, ranked in floors.items()
    }


def _last_session(done: Steps) -> list[int]:
    again: list[int] = done.item[done.session == done.session[-1]][::-1].tolist()
    return again


def _f1(reasoner: Reasoner, done: Steps) -> np.ndarray:
    scores: np.ndarray = decayed(done.item[::-1], F1_DECAY, len(reasoner.number)) @ reasoner.f1
    return scores


def _top(reasoner: Reasoner, scores: np.ndarray, done: Steps) -> list[int]:
    """The best DEPTH items that may come out: the same masks as the reasoner's."""
    closed = ~reasoner.available
    closed[done.item] = True
    ranked: list[int] = np.argsort(-np.where(closed, -np.inf, scores), kind="stable").tolist()
    return ranked[:DEPTH]
