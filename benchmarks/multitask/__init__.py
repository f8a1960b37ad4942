"""Do tasks help each other? PLE beside shared-bottom, single-task and LightGBM.

Claims and bars, stated before any figure:

- On MovieLens-100K (watched, rated >= 4, rated = 5), on Taobao (cart, buy) and in the
  simulated ranking world (play, long_view, like, follow, order), PLE is at least as good
  as shared-bottom and as single-task networks: the mean difference of AUC and of GAUC
  over seeds, averaged over the tasks of a data set, is >= 0. Intervals are 95 %, paired
  by user, over users' GAUC averaged over seeds; each task is in the table.
- LightGBM on the same features stands in the same table; reported, not gated.
- ECE of every model is reported, with PLE's reliability curves (notes): after Platt scaling
  on the validation rows, for all models alike.

Equal budget: each model gets the same grid of trials, chosen by validation (AUC and GAUC,
mean over tasks and two seeds that are not used again) and early stopping; a single-task
trial trains one network a task. At least five seeds then train the chosen setting.
Negatives of the real data are sampled unseen items, two a positive; features come from an
earlier part of each user's history that gives no training rows. The grid, the stopping and
how PLE starts were set on validation rows and on rows that are not in here: other users of
Taobao and MovieLens, a world of another seed.

`--quick`: fewer rows, one trial, two seeds. `--world FILE.toml`: another world. Taobao is
read from `TIDEMILL_DATA` (default ../shared/data) and left out with a reason where it is
not there. Each finished fit is kept under .cache/: a stopped run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.multitask.data import Missing, Proxy, movielens, taobao
from benchmarks.multitask.fitting import MODELS, TRIALS, Trial
from benchmarks.multitask.kept import fitted_once
from benchmarks.multitask.world import world
from benchmarks.report import Report
from models.training.calibration import reliability
from models.training.evaluation import PerUser, auc_per_user, gauc, paired_bootstrap

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SELECTION_SEEDS = (101, 102)


@dataclass(frozen=True)
class Scores:
    """One model's test probabilities of all seeds: float [seeds, N, T]."""

    trial: Trial
    p: np.ndarray

    def auc(self, proxy: Proxy, task: int) -> np.ndarray:
        labels = proxy.test.labels[:, task] > 0
        return np.array([gauc(np.zeros(len(labels)), p[:, task], labels) for p in self.p])

    def by_user(self, proxy: Proxy, task: int) -> PerUser:
        """Each user's AUC, averaged over seeds."""
        labels = proxy.test.labels[:, task] > 0
        each = [auc_per_user(proxy.test.users, p[:, task], labels) for p in self.p]
        return PerUser(each[0].users, np.mean([e.value for e in each], 0), each[0].weight)


def run(options: Options) -> Report:
    """All data sets; see the module's docstring for claims and bars."""
    seeds = 2 if options.quick else max(options.seeds, 5)
    trials = TRIALS[:1] if options.quick else TRIALS
    report = Report("multitask", {"seeds": seeds, "trials": [t.__dict__ for t in trials]})
    for load in (movielens, taobao, partial(world, options.world)):
        try:
            proxy = load(quick=options.quick)
        except Missing as reason:
            report.notes.append(f"left out: {reason}")
            continue
        report.data_checksum += f"{proxy.name}:{proxy.checksum} "
        _compare(report, proxy, trials, seeds)
    return report


def _compare(report: Report, proxy: Proxy, trials: tuple[Trial, ...], seeds: int) -> None:
    scores = {}
    for model in MODELS:
        tried = [_validation(proxy, model, trial) for trial in trials] if trials[1:] else [0.0]
        best = trials[int(np.argmax(tried))]
        report.notes.append(f"{proxy.name} {model}: chosen on validation {best}")
        p = np.stack([fitted_once(proxy, model, best, seed)[1] for seed in range(1, seeds + 1)])
        scores[model] = Scores(best, p)
    for task, name in enumerate(proxy.tasks):
        for model in MODELS:
            _row(report, proxy, task, name, model, scores)
        report.notes.append(_curve(proxy, task, name, scores["ple"]))
    for rival in ("shared_bottom", "single_task", "lightgbm"):
        _judge(report, proxy, rival, scores)


def _validation(proxy: Proxy, model: str, trial: Trial) -> float:
    """AUC and GAUC on the validation rows, mean over tasks and over seeds not used again."""
    found = []
    for seed in SELECTION_SEEDS:
        p = fitted_once(proxy, model, trial, seed)[0]
        for score, label in zip(p.T, proxy.valid.labels.T > 0, strict=True):
            found.append(gauc(np.zeros(len(label)), score, label))
            found.append(gauc(proxy.valid.users, score, label))
    return float(np.mean(found))


def _row(
    report: Report, proxy: Proxy, task: int, name: str, model: str, scores: dict[str, Scores]
) -> None:
    mine, ple = scores[model], scores["ple"]
    auc, users = mine.auc(proxy, task), mine.by_user(proxy, task)
    ahead = ple.by_user(proxy, task).value - users.value
    mean, low, high = paired_bootstrap(ahead, users.weight)
    happened = proxy.test.labels[:, task] > 0
    ece = float(np.mean([reliability(p[:, task], happened).ece for p in mine.p]))
    report.add(
        data=proxy.name,
        task=name,
        model=model,
        auc=float(auc.mean()),
        auc_sd=float(auc.std(ddof=1)),
        gauc=users.mean,
        ple_ahead=mean,
        low=low,
        high=high,
        ece=ece,
    )


def _judge(report: Report, proxy: Proxy, rival: str, scores: dict[str, Scores]) -> None:
    """The mean over tasks of PLE less the rival, by AUC and by GAUC."""
    tasks = range(len(proxy.tasks))
    ple, other = scores["ple"], scores[rival]
    auc = float(np.mean([(ple.auc(proxy, t) - other.auc(proxy, t)).mean() for t in tasks]))
    group = float(
        np.mean([ple.by_user(proxy, t).mean - other.by_user(proxy, t).mean for t in tasks])
    )
    gated = rival != "lightgbm"
    for metric, value in (("AUC", auc), ("GAUC", group)):
        name = f"{proxy.name}: PLE less {rival}, {metric}"
        report.judge(name, value, ">= 0" if gated else "none", value >= 0 if gated else None)


def _curve(proxy: Proxy, task: int, name: str, scores: Scores) -> str:
    happened = proxy.test.labels[:, task] > 0
    curve = reliability(scores.p[0][:, task], happened)
    pairs = zip(curve.predicted, curve.happened, strict=True)
    said = " ".join(f"{predicted:.3f}/{real:.3f}" for predicted, real in pairs)
    return f"{proxy.name} {name}, PLE's reliability, predicted/happened by tenth: {said}"
