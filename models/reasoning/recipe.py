"""Recipe of the dormant-user reasoner: fitting, evaluation and its bundle.

The model card is README.md. Knows the cases and their baselines. Does not know how the reasoner is
fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.layers.transitions import decayed
from models.reasoning.config import ReactivationConfig
from models.reasoning.data import read_histories
from models.reasoning.inputs import canary_request
from models.reasoning.reasoner import F1_DECAY, HISTORY, Reasoner
from models.reasoning.runtime import ReactivationRuntime
from models.reasoning.sessions import EngagementSteps
from models.reasoning.train import fit_reasoner
from models.recipe import Evaluation, NotEnoughData, TrainingLog
from models.release.canary import write_canary
from models.training.datasets import log_until, split_time_ms
from models.training.evaluation import compare, mean_per_user, recall_at_k
from streams.contract.declaration import contract
from streams.progress import ProgressCallback

DEPTH = 10


@dataclass(frozen=True)
class EvaluationCase:
    """One session after the split: the steps before it, and its new items."""

    user_id: str
    past: EngagementSteps
    now_ms: int
    wanted: frozenset[int]


class ReactivationRecipe:
    """`models.recipe.Recipe` of the dormant-user reasoner."""

    name = "reactivation"

    def __init__(self, config: ReactivationConfig | None = None) -> None:
        self.config = config or ReactivationConfig()

    def train(
        self, log: TrainingLog, bundle: Path, *, seed: int, progress: ProgressCallback
    ) -> None:
        """Fits on `log` and writes the bundle. Raises `NotEnoughData`. Does not depend on seed."""
        del seed
        reasoner = fit_reasoner(log, self.config, progress)
        reasoner.write(bundle)
        write_canary(bundle, canary_request(reasoner.item_ids), ReactivationRuntime)

    def evaluate(self, log: TrainingLog, *, seed: int, progress: ProgressCallback) -> Evaluation:
        """Recall@10 against the last session's items, a weak baseline; see the model card."""
        return self.evaluate_all(log, seed=seed, progress=progress)["the last session again"]

    def evaluate_all(
        self, log: TrainingLog, *, seed: int, progress: ProgressCallback
    ) -> dict[str, Evaluation]:
        """The same trajectories against every baseline, over the same users.

        Raises `NotEnoughData` where no user with a history has a later session.
        """
        split_ms = split_time_ms(log, kinds=contract().signals.engaged)
        reasoner = fit_reasoner(log_until(log, split_ms), self.config, progress)
        cases = _cases(log, reasoner, split_ms)
        if not cases:
            raise NotEnoughData(
                "no user with a history has a session in the last fifth of the log: "
                "gather events over a longer time"
            )
        rng = np.random.default_rng(seed)
        if len(cases) > self.config.max_evaluated:
            picked = rng.choice(len(cases), self.config.max_evaluated, replace=False)
            cases = [cases[n] for n in picked]
        return _compare_with_baselines(reasoner, cases, seed)


def recipe() -> ReactivationRecipe:
    """The recipe that `models.registry` names."""
    return ReactivationRecipe()


def _cases(log: TrainingLog, reasoner: Reasoner, split_ms: int) -> list[EvaluationCase]:
    """Sessions that begin after the split, of users with earlier sessions."""
    cases = []
    for user_id, whole in read_histories(log, reasoner.number).items():
        for session in np.unique(whole.session[whole.time_ms >= split_ms]):
            now = whole.session == session
            earlier = np.flatnonzero(whole.session < session)[-HISTORY:]
            start_ms = int(whole.time_ms[now].min())
            new = frozenset(whole.item[now].tolist()) - set(whole.item[earlier].tolist())
            if len(earlier) and start_ms >= split_ms and new:
                cases.append(EvaluationCase(user_id, select_steps(whole, earlier), start_ms, new))
    return cases


def select_steps(whole: EngagementSteps, rows: np.ndarray) -> EngagementSteps:
    """The steps of these rows."""
    return EngagementSteps(
        whole.item[rows], whole.kind[rows], whole.time_ms[rows], whole.session[rows]
    )


def _compare_with_baselines(
    reasoner: Reasoner, cases: list[EvaluationCase], seed: int
) -> dict[str, Evaluation]:
    wanted: list[set[object]] = [set(case.wanted) for case in cases]
    users = np.array([case.user_id for case in cases])
    plans = [reasoner.plan(case.past, DEPTH, case.now_ms) for case in cases]
    ours: list[list[int]] = [plan.items if plan else [] for plan in plans]
    baselines = {
        "the last session again": [_last_session(case.past) for case in cases],
        "popularity": [_top(reasoner, reasoner.popular, case.past) for case in cases],
        "F1 transitions": [_top(reasoner, _f1(reasoner, case.past), case.past) for case in cases],
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
        for name, ranked in baselines.items()
    }


def _last_session(past: EngagementSteps) -> list[int]:
    again: list[int] = past.item[past.session == past.session[-1]][::-1].tolist()
    return again


def _f1(reasoner: Reasoner, past: EngagementSteps) -> np.ndarray:
    scores: np.ndarray = decayed(past.item[::-1], F1_DECAY, len(reasoner.number)) @ reasoner.f1
    return scores


def _top(reasoner: Reasoner, scores: np.ndarray, past: EngagementSteps) -> list[int]:
    """The best DEPTH items under the reasoner's exclusions."""
    closed = ~reasoner.available
    closed[past.item] = True
    ranked: list[int] = np.argsort(-np.where(closed, -np.inf, scores), kind="stable").tolist()
    return ranked[:DEPTH]
