"""The served ranker with and without its author features.

Claim, set before any run: with features of the candidates' authors (the author's own counts,
and how often the author is in the user's lists) the ranker is no worse than without: for
unlogged interactions and for slates the paired difference of GAUC has a lower bound above
-0.002. The effect of each half of the features, and AUC and GAUC per task, are reported.

No author of this world has an effect of its own (a studio is films of one rarest genre and
decade), so little can be gained, and the claim is that nothing is lost.

The demo's world: replayed ratings as history, then slates of half popular and half random
films to which simulated users react (seeds draw the users, reactions and slates). Trained on
the first part of time, evaluated on the last fifth of slates and on unlogged interactions of
the last fifth of history. The features were chosen on seeds 100 and 101, which are not among
those reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from benchmarks.report import Report
from deploy.simulation.config import WorldConfig
from deploy.simulation.history import DEFAULT_END_MS, history
from deploy.simulation.movielens import DataUnavailable, load
from deploy.simulation.reactions import Action, watch_slate
from deploy.simulation.truth import Truth, plant
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.data import RankerExamples, impression_examples, unlogged_examples
from models.ranking.ple.export import read_network
from models.ranking.ple.features import ITEM_FEATURES
from models.ranking.ple.inputs import RANKER_TASKS
from models.ranking.ple.network import Ranker
from models.ranking.ple.recipe import RankerRecipe
from models.ranking.ple.tensors import RankerBatch, build_batch
from models.recipe import TrainingLog
from models.training.datasets import log_until
from models.training.evaluation import PerUser, auc_per_user, average_ranks, paired_bootstrap
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.events import KIND_CODE, CatalogueItem
from streams.contract.impression import Impression, sign
from streams.contract.schema import EVENT_SCHEMA
from streams.feedback.join import FeedbackJoin
from streams.feedback.outcomes import AttributionWindows
from streams.progress import no_progress

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

BAR = -0.002
SLATE, DAYS = 10, 6
KEY = bytes(32)
ROW = tuple(name for name in ITEM_FEATURES if name.startswith("author_"))
CROSSES = tuple(name for name in ITEM_FEATURES if name.startswith("log_author_"))
ARMS = {"all": (), "without crosses": CROSSES, "without rows": ROW, "neither": (*ROW, *CROSSES)}


@dataclass(frozen=True)
class ArmScores:
    """Held-out groups of one source, with P(action) [N, T] and score [N] of one arm."""

    examples: RankerExamples
    p: np.ndarray
    score: np.ndarray


def run(options: Options) -> Report:
    """See the module's docstring for the claim and its bar."""
    seeds = range(1 if options.quick else options.seeds)
    slates = 1_500 if options.quick else 6_000
    report = Report("authors", {"seeds": len(seeds), "slates": slates, "arms": list(ARMS)})
    try:
        load()
    except DataUnavailable as reason:
        report.notes.append(f"left out: {reason}")
        return report
    world = WorldConfig.load(options.world) if options.world else WorldConfig.load()
    results = [arms_of(world, seed, slates) for seed in seeds]
    for source in ("encounters", "slates"):
        for arm in ARMS:
            report.add(**_row(source, arm, [each[source] for each in results]))
        low = _difference([each[source] for each in results], "all", "neither")[1]
        report.check(f"{source}: GAUC with less without, lower bound", low, f">= {BAR}", low >= BAR)
    return report


def arms_of(world: WorldConfig, seed: int, slates: int) -> dict[str, dict[str, ArmScores]]:
    """source -> arm -> scores of the held-out groups, in one world."""
    log, history_end = simulated(world, seed, slates)
    cut = int(np.quantile(impression_examples(log, count=slates).time_ms, 0.8))
    before_history = log_until(log, _last_fifth(log, history_end))
    sources = {
        "encounters": (before_history, _encounters(log, before_history.until_ms, seed)),
        "slates": (log_until(log, cut), impression_examples(log, count=slates).since(cut)),
    }
    return {
        source: {arm: _arm_scores(log, past, later, arm, seed) for arm in ARMS}
        for source, (past, later) in sources.items()
    }


def simulated(world: WorldConfig, seed: int, slates: int) -> tuple[TrainingLog, int]:
    """A history followed by slates with reactions; and when the history ended."""
    data = load()
    truth = plant(data, world, seed)
    past = history(seed, world=world, data=data, crowd=truth.people)
    rows = list(_reactions(truth, past.items, np.random.default_rng([seed, 11]), slates))
    lived = pl.DataFrame(rows, schema=past.frame.schema)
    events = pl.concat([past.frame, lived]).sort("event_time_ms", "event_id")
    coded = lived.with_columns(pl.col("kind").replace_strict(KIND_CODE, return_dtype=pl.UInt8))
    outcomes = FeedbackJoin(KEY).join_batch(coded.to_arrow().cast(EVENT_SCHEMA)).to_columns()
    joined = outcomes.feedback_rows(AttributionWindows({"play": HOUR_MS}))
    feedback = pl.DataFrame(joined).sort("matured_at_ms", "impression_id")
    until = int(events["event_time_ms"].to_list()[-1]) + DAY_MS
    return TrainingLog(events, past.items_frame, feedback, until), DEFAULT_END_MS


def _reactions(
    truth: Truth, items: list[CatalogueItem], rng: np.random.Generator, slates: int
) -> Iterator[dict[str, object]]:
    """Events of slates, half of their films drawn by popularity and half uniformly."""
    films = [film.video_id for film in truth.data.films]
    about = {item.video_id: item for item in items}
    plays = truth.data.ratings.group_by("video_id").len()
    seen = dict(plays.iter_rows())
    popular = np.array([seen.get(film, 0) for film in films], float)
    times = np.sort(rng.integers(DEFAULT_END_MS + HOUR_MS, DEFAULT_END_MS + DAYS * DAY_MS, slates))
    for number, at_ms in enumerate(times.tolist()):
        user = int(rng.integers(len(truth.people.user_ids)))
        drawn = rng.choice(len(films), SLATE // 2, replace=False, p=popular / popular.sum())
        even = rng.choice(np.setdiff1d(np.arange(len(films)), drawn), SLATE // 2, replace=False)
        slate = rng.permutation(np.r_[drawn, even]).tolist()
        shown = [about[films[film]] for film in slate]
        visit = watch_slate(
            truth, user, slate, [i.duration_ms for i in shown], [i.price_cents for i in shown], rng
        )
        tokens = [_token(truth, user, number, slot, i, at_ms) for slot, i in enumerate(shown)]
        for action in visit.actions:
            item = shown[action.slot]
            yield _event(truth, user, number, action, item, at_ms, tokens[action.slot])


def _token(truth: Truth, user: int, number: int, slot: int, item: CatalogueItem, at_ms: int) -> str:
    served = Impression(
        request_id=f"q{number}",
        surface="feed",
        user_id=truth.people.user_ids[user],
        video_id=item.video_id,
        slot=slot,
        propensity=1.0,
        release="world",
        served_at_ms=at_ms,
    )
    return sign(served, KEY)


def _event(
    truth: Truth, user: int, number: int, action: Action, item: CatalogueItem, at: int, token: str
) -> dict[str, object]:
    at_ms = at + 100 + action.offset_ms
    return dict.fromkeys(EVENT_SCHEMA.names) | {
        "event_id": f"sim:{number}:{action.slot}:{action.kind}",
        "user_id": truth.people.user_ids[user],
        "kind": action.kind,
        "event_time_ms": at_ms,
        "ingested_at_ms": at_ms,
        "surface": "feed",
        "origin": "simulated",
        "impression": token,
        "video_id": item.video_id,
        "author_id": item.author_id,
        "dwell_ms": action.dwell_ms,
        "amount_cents": action.amount_cents,
        "late": False,
        "duplicate": False,
        "source_partition": 0,
        "source_offset": 0,
    }


def _last_fifth(log: TrainingLog, end_ms: int) -> int:
    """The time before which four fifths of the history's events lie."""
    times = log.events.filter(pl.col("event_time_ms") < end_ms)["event_time_ms"].sort()
    return int(times[int(len(times) * 0.8)])


def _encounters(log: TrainingLog, since_ms: int, seed: int) -> RankerExamples:
    return unlogged_examples(
        log, negatives=20, uniform_share=1.0, since_ms=since_ms, count=2_000, seed=seed + 1
    )


def _arm_scores(
    log: TrainingLog, past: TrainingLog, later: RankerExamples, arm: str, seed: int
) -> ArmScores:
    """The arm's ranker, trained on `past` and applied to `later`."""
    with tempfile.TemporaryDirectory() as folder:
        RankerRecipe(RankerConfig(without=ARMS[arm])).train(
            past, Path(folder), seed=seed, progress=no_progress
        )
        network, vocabulary = read_network(Path(folder))
    p, score = _predict(network, build_batch(log, later, vocabulary))
    return ArmScores(later, p[later.real], score[later.real])


@torch.no_grad()
def _predict(network: Ranker, batch: RankerBatch) -> tuple[np.ndarray, np.ndarray]:
    """P(action) [G, C, T] and score [G, C]."""
    parts = []
    for rows in torch.split(torch.arange(len(batch)), 256):
        logits, _, score = network(*batch.take(rows).inputs())
        parts.append((logits.sigmoid(), score))
    p, score = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return p, score


def _row(source: str, arm: str, results: list[dict[str, ArmScores]]) -> dict[str, object]:
    """Means over seeds: the score's GAUC, its gain over `neither`, AUC and GAUC per task."""
    mean, low, high = _difference(results, arm, "neither")
    each = [one[arm] for one in results]
    row: dict[str, object] = {"source": source, "arm": arm}
    row["gauc"] = float(np.mean([_of_score(one).mean for one in each]))
    row |= {"gain": mean, "low": low, "high": high}
    for task, name in enumerate(RANKER_TASKS):
        labels = [one.examples.labels[one.examples.real][:, task] for one in each]
        pairs = list(zip(each, labels, strict=True))
        row[f"{name} auc"] = float(np.mean([_auc(o.p[:, task], y) for o, y in pairs]))
        row[f"{name} gauc"] = float(np.mean([_gauc(o, o.p[:, task], y).mean for o, y in pairs]))
    return row


def _difference(
    results: list[dict[str, ArmScores]], arm: str, other: str
) -> tuple[float, float, float]:
    """Paired over the users of all seeds: mean and 95 % interval of the score's GAUC."""
    pairs = [(_of_score(one[arm]), _of_score(one[other])) for one in results]
    difference = np.concatenate([a.value - b.value for a, b in pairs])
    return paired_bootstrap(difference, np.concatenate([a.weight for a, _ in pairs]))


def _of_score(one: ArmScores) -> PerUser:
    acted = one.examples.acted[one.examples.real]
    return _gauc(one, one.score, acted)


def _gauc(one: ArmScores, scores: np.ndarray, labels: np.ndarray) -> PerUser:
    """AUC within each ranked group, averaged per user."""
    group, _ = np.nonzero(one.examples.real)
    per_group = auc_per_user(group, scores, labels)
    users = one.examples.users[per_group.users].astype(str)
    names, codes = np.unique(users, return_inverse=True)
    count = np.bincount(codes, minlength=len(names)).astype(float)
    return PerUser(names, np.bincount(codes, per_group.value, len(names)) / count, count)


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks = average_ranks(np.zeros(len(scores), int), scores)
    positives = int(labels.sum())
    wins = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(wins / max(positives * (len(labels) - positives), 1))
