"""How much of the ranker's own top ten does the pre-rank let through?

Claims and bars, stated before any figure, on MovieLens-100K as the stack replays it:

- The ranker is trained on the first 80 % of time; users who act afterwards are asked at
  the split, with every film of the catalogue that they have not engaged with (about
  1,600) as candidates. **Recall of the ranker's top 10 within the pre-rank's 200 >= 0.90**,
  mean over users; its 95 % interval is paired by user and is reported.
- Beside it in the same table, reported: popularity alone, and 200 drawn at random; and the
  recall of the ranker's top 50.
- CPU of ranking 5,000 candidates (films repeated under other ids) with and without the
  cut, in process on one thread: reported.

`--quick`: fewer users and encounters. Left out with a reason where the data cannot be had.
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
from features.offline.point_in_time.replay import event_table
from models.ranking.ple.inputs import assemble
from models.ranking.ple.recipe import Config, RankerRecipe
from models.ranking.ple.runtime import RankerRuntime
from models.recipe import TrainingLog
from models.release.promotion import quiet
from models.training.datasets import log_until, split_time_ms
from models.training.evaluation import paired_bootstrap
from serving.pipeline.query import Candidate, Pool, Query
from serving.stages.prerank import TasteTowers
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import Snapshot
from streams.bus.contract import Stamp
from streams.catalogue import Catalogue
from streams.contract.clock import ManualClock
from streams.contract.events import CatalogueItem, ItemAdded
from streams.feedback.outcomes import FEEDBACK_SCHEMA

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

BAR, TOP, WIDE, MANY = 0.90, 10, 50, 5_000


@dataclass(frozen=True)
class Mill:
    """The served parts at one moment: what a gateway would hold then."""

    store: MemoryFeatureStore
    items: dict[str, CatalogueItem]
    towers: TasteTowers
    ranker: RankerRuntime
    now_ms: int

    def query(self, user_id: str) -> Query:
        user = self.store.read("user", [user_id], self.now_ms)
        return Query("r", "feed", user_id, TOP, self.now_ms, 0, user=user, cold_user=False)

    def unmet(self, user_id: str) -> list[str]:
        done = self.towers.activity.engaged(user_id)
        return [video for video in self.items if video not in done]

    def ranked(self, query: Query, ids: list[str]) -> np.ndarray:
        """float32 [C]: the ranker's scores."""
        videos = self.store.read("video", ids, self.now_ms)
        assert query.user is not None
        about = [self.items[video] for video in ids]
        authors = self.store.read("author", [i.author_id or "" for i in about], self.now_ms)
        author_of = {video: item.author_id or "" for video, item in self.items.items()}
        inputs = assemble(query.user, videos, authors, about, author_of, query.now_ms)
        return self.ranker.infer(inputs)["score"]

    def kept(self, query: Query, ids: list[str]) -> np.ndarray:
        """int64 [keep]: rows that the pre-rank lets through."""
        worth = self.towers.worth(query, _pool(ids))
        return np.argsort(-worth, kind="stable")[: self.towers.keep]


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    users = 60 if options.quick else 300
    config = Config(encounters=4_000 if options.quick else 12_000)
    report = Report("prerank", {"users": users, "encounters": config.encounters, "top": TOP})
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
        RankerRecipe(config).train(before, Path(folder), seed=0, progress=quiet)
        mill = _mill(before, [i for i in past.items if i.created_ms < split], Path(folder), split)
        asked = _asked(log, before, split, users)
        _compare(report, mill, asked)
        _costs(report, mill, asked[0])
    return report


def _mill(log: TrainingLog, items: list[CatalogueItem], bundle: Path, now_ms: int) -> Mill:
    store, activity, fold = MemoryFeatureStore(), Activity(), Catalogue()
    events = event_table(log.events)
    for entity in DEFINITIONS:
        store.fold(entity, events, Stamp("replayed", 0, 0))
    activity.fold(events)
    for item in items:
        fold.apply(ItemAdded(event_id=item.video_id, event_time_ms=1, item=item))
    catalogue = LiveCatalogue(fold)
    snapshot = Snapshot(store, catalogue, ManualClock(now_ms))
    snapshot.refresh()
    towers = TasteTowers(catalogue, snapshot, activity)
    known = {item.video_id: item for item in items}
    return Mill(store, known, towers, RankerRuntime(bundle), now_ms)


def _asked(log: TrainingLog, before: TrainingLog, split: int, count: int) -> list[str]:
    """Users with a past who act again after the split, drawn by a fixed seed."""
    later = log.events.filter(pl.col("event_time_ms") >= split)["user_id"].unique()
    both = sorted(set(later) & set(before.events["user_id"].unique()))
    chosen = np.random.default_rng(0).permutation(both)[:count]
    return [str(user) for user in chosen]


def _compare(report: Report, mill: Mill, users: list[str]) -> None:
    recall: dict[str, list[tuple[float, float]]] = {}
    rng = np.random.default_rng(1)
    for user in users:
        query, ids = mill.query(user), mill.unmet(user)
        order = np.argsort(-mill.ranked(query, ids), kind="stable")
        popular = np.argsort(-mill.towers.snapshot.now.of(ids), kind="stable")
        rivals = {
            "taste towers": mill.kept(query, ids),
            "popularity": popular[: mill.towers.keep],
            "random": rng.permutation(len(ids))[: mill.towers.keep],
        }
        for name, rows in rivals.items():
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
    found = float(np.mean([top for top, _ in recall["taste towers"]]))
    report.judge("recall of the ranker's top 10 in 200", found, f">= {BAR}", found >= BAR)


def _costs(report: Report, mill: Mill, user: str) -> None:
    """CPU ms of one request of 5,000 candidates, the median of five."""
    query = mill.query(user)
    ids = (list(mill.items) * (MANY // len(mill.items) + 1))[:MANY]

    def cut() -> None:
        mill.ranked(query, [ids[row] for row in mill.kept(query, ids)])

    for name, call in (("with", cut), ("without", lambda: mill.ranked(query, ids))):
        took = []
        for _ in range(5):
            started = time.process_time()
            call()
            took.append((time.process_time() - started) * 1e3)
        report.judge(
            f"CPU of {MANY} candidates {name} the cut, ms", float(np.median(took)), "none", None
        )


def _pool(ids: list[str]) -> Pool:
    return Pool(tuple(Candidate(video, "given") for video in ids))
