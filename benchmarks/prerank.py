"""Recall of the ranker's top ten within the candidates that the pre-rank keeps.

Claims and bars, set before any measurement, on MovieLens-100K as the stack replays it:

- The ranker is trained on the first 80 % of time. Users who act afterwards are ranked at the
  split, with every film of the catalogue that they have not engaged with (about 1,600) as
  candidates. **Recall of the ranker's top 10 within the pre-rank's 200 >= 0.90**,
  mean over users; its 95 % interval is paired by user and is reported.
- Reported in the same table: popularity alone, 200 random candidates, and the recall of the
  ranker's top 50.
- CPU of ranking 5,000 candidates (films repeated under other ids) with and without the
  cut, in process on one thread: reported.

`--quick`: fewer users and interactions. Skipped with the reason if the data is not available.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.report import Report
from deploy.simulation.history import history
from deploy.simulation.movielens import DataUnavailable
from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.replay import to_event_table
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.inputs import assemble_request
from models.ranking.ple.recipe import RankerRecipe
from models.ranking.ple.runtime import RankerRuntime
from models.recipe import TrainingLog
from models.training.datasets import log_until, split_time_ms
from models.training.evaluation import paired_bootstrap
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query
from serving.stages.prerank import TasteDotProduct
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache
from streams.bus.contract import Stamp
from streams.catalogue import Catalogue
from streams.contract.clock import ManualClock
from streams.contract.events import CatalogueItem, ItemAdded
from streams.feedback.outcomes import FEEDBACK_SCHEMA
from streams.progress import no_progress

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

BAR, TOP, WIDE, MANY = 0.90, 10, 50, 5_000


@dataclass(frozen=True)
class ServedState:
    """The state that a gateway would hold at one moment."""

    store: MemoryFeatureStore
    items: dict[str, CatalogueItem]
    prerank: TasteDotProduct
    ranker: RankerRuntime
    now_ms: int

    def query(self, user_id: str) -> Query:
        user = self.store.read("user", [user_id], self.now_ms)
        return Query("r", "feed", user_id, TOP, self.now_ms, 0, user=user, cold_user=False)

    def not_engaged(self, user_id: str) -> list[str]:
        done = self.prerank.activity.engaged(user_id)
        return [item_id for item_id in self.items if item_id not in done]

    def ranked(self, query: Query, ids: list[str]) -> np.ndarray:
        """float32 [C]: the ranker's scores."""
        items = self.store.read("video", ids, self.now_ms)
        assert query.user is not None
        about = [self.items[item_id] for item_id in ids]
        authors = self.store.read("author", [i.author_id or "" for i in about], self.now_ms)
        author_of = {item_id: item.author_id or "" for item_id, item in self.items.items()}
        inputs = assemble_request(query.user, items, authors, about, author_of, query.now_ms)
        return self.ranker.infer(inputs)["score"]

    def kept(self, query: Query, ids: list[str]) -> np.ndarray:
        """int64 [keep]: rows that the pre-rank keeps."""
        scores = self.prerank.prerank_scores(query, _pool(ids))
        return np.argsort(-scores, kind="stable")[: self.prerank.keep]


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    users = 60 if options.quick else 300
    config = RankerConfig(interactions=4_000 if options.quick else 12_000)
    report = Report("prerank", {"users": users, "encounters": config.interactions, "top": TOP})
    try:
        past = history()
    except DataUnavailable as reason:
        report.notes.append(f"left out: {reason}")
        return report
    none = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(none, pl.DataFrame)
    newest = int(past.frame["event_time_ms"].to_list()[-1])
    log = TrainingLog(past.frame, past.items_frame, none, newest + 1)
    split = split_time_ms(log)
    with tempfile.TemporaryDirectory() as folder:
        before = log_until(log, split)
        RankerRecipe(config).train(before, Path(folder), seed=0, progress=no_progress)
        served = _served_state(
            before, [i for i in past.items if i.created_ms < split], Path(folder), split
        )
        test_users = _test_users(log, before, split, users)
        _compare(report, served, test_users)
        _costs(report, served, test_users[0])
    return report


def _served_state(
    log: TrainingLog, items: list[CatalogueItem], bundle: Path, now_ms: int
) -> ServedState:
    store, activity, fold = MemoryFeatureStore(), Activity(), Catalogue()
    events = to_event_table(log.events)
    for entity in DEFINITIONS:
        store.fold(entity, events, Stamp("replayed", 0, 0))
    activity.fold(events)
    for item in items:
        fold.apply(ItemAdded(event_id=item.video_id, event_time_ms=1_700_000_000_000, item=item))
    catalogue = LiveCatalogue(fold)
    snapshot = PopularityCache(store, catalogue, ManualClock(now_ms))
    snapshot.refresh()
    towers = TasteDotProduct(catalogue, snapshot, activity)
    known = {item.video_id: item for item in items}
    return ServedState(store, known, towers, RankerRuntime(bundle), now_ms)


def _test_users(log: TrainingLog, before: TrainingLog, split: int, count: int) -> list[str]:
    """Users with a history who act after the split, drawn by a fixed seed."""
    later = log.events.filter(pl.col("event_time_ms") >= split)["user_id"].unique()
    both = sorted(set(later) & set(before.events["user_id"].unique()))
    chosen = np.random.default_rng(0).permutation(both)[:count]
    return [str(user) for user in chosen]


def _compare(report: Report, served: ServedState, users: list[str]) -> None:
    recall: dict[str, list[tuple[float, float]]] = {}
    rng = np.random.default_rng(1)
    for user in users:
        query, ids = served.query(user), served.not_engaged(user)
        order = np.argsort(-served.ranked(query, ids), kind="stable")
        popular = np.argsort(-served.prerank.popularity.current.scores_of(ids), kind="stable")
        methods = {
            "taste dot product": served.kept(query, ids),
            "popularity": popular[: served.prerank.keep],
            "random": rng.permutation(len(ids))[: served.prerank.keep],
        }
        for name, rows in methods.items():
            top, wide = (float(np.isin(order[:k], rows).mean()) for k in (TOP, WIDE))
            recall.setdefault(name, []).append((top, wide))
    for name, values in recall.items():
        top, wide = np.array(values).T
        mean, low, high = paired_bootstrap(top)
        report.add(
            prerank=name,
            recall_at_10=mean,
            low=low,
            high=high,
            recall_at_50=float(wide.mean()),
            users=len(values),
        )
    found = float(np.mean([top for top, _ in recall["taste dot product"]]))
    report.check("recall of the ranker's top 10 in 200", found, f">= {BAR}", found >= BAR)


def _costs(report: Report, served: ServedState, user: str) -> None:
    """CPU ms of one request of 5,000 candidates, the median of five."""
    query = served.query(user)
    ids = (list(served.items) * (MANY // len(served.items) + 1))[:MANY]

    def cut() -> None:
        served.ranked(query, [ids[row] for row in served.kept(query, ids)])

    for name, call in (("with", cut), ("without", lambda: served.ranked(query, ids))):
        took = []
        for _ in range(5):
            started = time.process_time()
            call()
            took.append((time.process_time() - started) * 1e3)
        report.check(
            f"CPU of {MANY} candidates {name} the cut, ms", float(np.median(took)), "none", None
        )


def _pool(ids: list[str]) -> Pool:
    return Pool.of(tuple(Candidate(item_id, "given") for item_id in ids))
