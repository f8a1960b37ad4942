"""Off-policy value of a ranker that is not live, on the slates that the live one served.

Knows bundles, the log and which releases served the live version. Does not know updates
(`models.training.update`) or the estimators (`models.alignment.off_policy`).

By default only slates after the other ranker was sealed count: a model must not be evaluated on
its training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from models.alignment.gate import policy_decisions
from models.alignment.off_policy import Estimate, doubly_robust, ips, snips
from models.ranking.ple.data import impression_examples
from models.ranking.ple.export import read_network
from models.ranking.ple.recipe import served_scores
from models.ranking.ple.tensors import build_batch
from models.ranking.tasks import RankerTasks
from models.recipe import NotEnoughData, TrainingLog
from models.release.bundle import Bundle, ReleaseError
from models.release.store import ReleaseStore
from streams.progress import ProgressCallback

MIN_SLATES = 60
SLATES = 8_000


@dataclass(frozen=True)
class RankerValue:
    """IPS, SNIPS and DR of re-ordering the logged slates as `version` would."""

    version: int
    live: int
    slates: int
    estimates: tuple[Estimate, ...]


def off_policy_value(
    store: ReleaseStore,
    log: TrainingLog,
    *,
    version: int | None = None,
    every_slate: bool = False,
    seed: int = 0,
    progress: ProgressCallback,
) -> RankerValue:
    """The value of ranker `version` (None: the newest that is not live) beside the live one's.

    Raises:
        ReleaseError: nothing is live, or there is no other ranker.
        NotEnoughData: too few slates were served since the other one was sealed.
    """
    live, other = _live_and_other(store, version)
    served = replace(log, feedback=_served_by(store, live.version, log.feedback))
    progress(0.1, "reading slates with matured feedback")
    tasks = RankerTasks.read(live.path)
    slates = impression_examples(served, count=SLATES, tasks=tasks)
    if not every_slate:
        slates = slates.since(other.created_ms)
    if len(slates) < MIN_SLATES:
        raise NotEnoughData(_too_few(len(slates), live, other, every_slate))
    scores = []
    for place, bundle in enumerate((live, other)):
        progress(0.3 + 0.3 * place, f"scoring {len(slates)} slates with version {bundle.version}")
        network, vocabulary = read_network(bundle.path)
        drawn = slates.weights if bundle is live else None
        scores.append(served_scores(network, build_batch(served, slates, vocabulary), drawn=drawn))
    decisions = policy_decisions(slates, scores[0], scores[1])
    progress(0.9, "resampling users")
    estimates = tuple(each(decisions, seed=seed) for each in (ips, snips, doubly_robust))
    progress(1.0, "estimated")
    return RankerValue(other.version, live.version, len(slates), estimates)


def _live_and_other(store: ReleaseStore, version: int | None) -> tuple[Bundle, Bundle]:
    current = store.current()
    if current is None or "ranker" not in current.models:
        raise ReleaseError("no ranker is live: `tidemill models promote`")
    live = current.models["ranker"]
    others: Sequence[int] = [v for v in store.versions("ranker") if v != live]
    if version is not None and version not in others:
        known = ", ".join(map(str, others)) or "none"
        raise ReleaseError(f"ranker {version} cannot be compared with {live}; these can: {known}")
    if not others:
        raise ReleaseError(
            f"ranker {live} is the only one: `tidemill models train ranker` makes another"
        )
    return store.bundle("ranker", live), store.bundle("ranker", version or others[-1])


def _served_by(store: ReleaseStore, version: int, feedback: pl.DataFrame) -> pl.DataFrame:
    """Feedback of releases with this ranker: the logging policy must be one policy.

    Without items that a rule placed: the ranker did not choose these.
    """
    same = [m.release_id for m in store.manifests() if m.models.get("ranker") == version]
    found = feedback.filter(pl.col("release").is_in(same))
    return found.filter(~pl.col("placed").fill_null(False)) if "placed" in found.columns else found


def _too_few(found: int, live: Bundle, other: Bundle, every_slate: bool) -> str:
    since = "" if every_slate else f" since ranker {other.version} was sealed"
    advice = (
        "serve more" if every_slate else "wait, or pass --every-slate for an optimistic estimate"
    )
    return (
        f"{found} slates of ranker {live.version} have matured{since}, {MIN_SLATES} needed: "
        f"{advice}"
    )
