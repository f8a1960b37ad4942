"""Multi-task ranking: PLE compared with shared-bottom, single-task and LightGBM.

Claims and bars, set before any measurement:

- On MovieLens-100K (watched, rated >= 4, rated = 5), on Taobao (cart, buy) and in the
  simulated ranking world (play, long_view, like, follow, order), PLE is at least as good
  as shared-bottom and as single-task networks: the mean difference of AUC and of GAUC
  over seeds, averaged over the tasks of a data set, is >= 0. Intervals are 95 %, paired
  by user, over users' GAUC averaged over seeds; each task is in the table.
- LightGBM on the same features is reported without a bar.
- ECE of every model is reported, with PLE's reliability curves (notes): after Platt scaling
  on the validation rows, for all models alike.

Equal budget: each model gets the same grid of trials, chosen by validation (AUC and GAUC,
mean over tasks and two seeds used only for this) and early stopping; a single-task trial
trains one network a task. At least five seeds then train the chosen setting.
Negatives of the real data are sampled unseen items, two a positive; features come from an
earlier part of each user's history that gives no training rows. The grid, the stopping rule and
PLE's initialisation were set on validation rows and on rows that are not used here: other users
of Taobao and MovieLens, a world of another seed.

`--quick`: fewer rows, one trial, two seeds. `--world FILE.toml`: another world. Taobao is
read from `TIDEMILL_DATA` (default ../shared/data) and skipped with the reason if missing. Each
finished fit is cached under .cache/: a stopped run resumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.multitask.datasets import Dataset, DatasetMissing, movielens, taobao
from benchmarks.multitask.fit_cache import fit_cached
from benchmarks.multitask.fitting import MODELS, TRIALS, Trial
from benchmarks.multitask.world_dataset import world
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

    def auc(self, dataset: Dataset, task: int) -> np.ndarray:
        labels = dataset.test.labels[:, task] > 0
        return np.array([gauc(np.zeros(len(labels)), p[:, task], labels) for p in self.p])

    def by_user(self, dataset: Dataset, task: int) -> PerUser:
        """Each user's AUC, averaged over seeds."""
        labels = dataset.test.labels[:, task] > 0
        each = [auc_per_user(dataset.test.users, p[:, task], labels) for p in self.p]
        return PerUser(each[0].users, np.mean([e.value for e in each], 0), each[0].weight)


def run(options: Options) -> Report:
    """All data sets; see the module's docstring for claims and bars."""
    seeds = 2 if options.quick else max(options.seeds, 5)
    trials = TRIALS[:1] if options.quick else TRIALS
    report = Report("multitask", {"seeds": seeds, "trials": [t.__dict__ for t in trials]})
    for load in (movielens, taobao, partial(world, options.world)):
        try:
            dataset = load(quick=options.quick)
        except DatasetMissing as reason:
            report.notes.append(f"left out: {reason}")
            continue
        report.data_checksum += f"{dataset.name}:{dataset.checksum} "
        _compare(report, dataset, trials, seeds)
    return report


def _compare(report: Report, dataset: Dataset, trials: tuple[Trial, ...], seeds: int) -> None:
    scores = {}
    for model in MODELS:
        tried = [_validation(dataset, model, trial) for trial in trials] if trials[1:] else [0.0]
        best = trials[int(np.argmax(tried))]
        report.notes.append(f"{dataset.name} {model}: chosen on validation {best}")
        p = np.stack([fit_cached(dataset, model, best, seed)[1] for seed in range(1, seeds + 1)])
        scores[model] = Scores(best, p)
    for task, name in enumerate(dataset.tasks):
        for model in MODELS:
            _row(report, dataset, task, name, model, scores)
        report.notes.append(_curve(dataset, task, name, scores["ple"]))
    for baseline in ("shared_bottom", "single_task", "lightgbm"):
        _check_bars(report, dataset, baseline, scores)


def _validation(dataset: Dataset, model: str, trial: Trial) -> float:
    """AUC and GAUC on the validation rows, mean over tasks and over seeds not used again."""
    found = []
    for seed in SELECTION_SEEDS:
        p = fit_cached(dataset, model, trial, seed)[0]
        for score, label in zip(p.T, dataset.valid.labels.T > 0, strict=True):
            found.append(gauc(np.zeros(len(label)), score, label))
            found.append(gauc(dataset.valid.users, score, label))
    return float(np.mean(found))


def _row(
    report: Report, dataset: Dataset, task: int, name: str, model: str, scores: dict[str, Scores]
) -> None:
    mine, ple = scores[model], scores["ple"]
    auc, users = mine.auc(dataset, task), mine.by_user(dataset, task)
    ahead = ple.by_user(dataset, task).value - users.value
    mean, low, high = paired_bootstrap(ahead, users.weight)
    happened = dataset.test.labels[:, task] > 0
    ece = float(np.mean([reliability(p[:, task], happened).ece for p in mine.p]))
    report.add(
        data=dataset.name,
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


def _check_bars(report: Report, dataset: Dataset, baseline: str, scores: dict[str, Scores]) -> None:
    """The mean over tasks of PLE minus the baseline, by AUC and by GAUC."""
    tasks = range(len(dataset.tasks))
    ple, other = scores["ple"], scores[baseline]
    auc = float(np.mean([(ple.auc(dataset, t) - other.auc(dataset, t)).mean() for t in tasks]))
    group = float(
        np.mean([ple.by_user(dataset, t).mean - other.by_user(dataset, t).mean for t in tasks])
    )
    gated = baseline != "lightgbm"
    for metric, value in (("AUC", auc), ("GAUC", group)):
        name = f"{dataset.name}: PLE minus {baseline}, {metric}"
        report.check(name, value, ">= 0" if gated else "none", value >= 0 if gated else None)


def _curve(dataset: Dataset, task: int, name: str, scores: Scores) -> str:
    happened = dataset.test.labels[:, task] > 0
    curve = reliability(scores.p[0][:, task], happened)
    pairs = zip(curve.predicted, curve.happened, strict=True)
    pairs_text = " ".join(f"{predicted:.3f}/{real:.3f}" for predicted, real in pairs)
    return f"{dataset.name} {name}, PLE's reliability, predicted/happened by tenth: {pairs_text}"
