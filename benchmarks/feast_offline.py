"""`get_historical_features` over the event log, beside Feast's own file store.

1,000,000 events, 200,000 labels of users within an hour after an impression, 20 features, through
Feast's interface both times: the plain file store joins 20 int64 columns on event time, ours joins
20 declared features on event time and arrival. A process each, alternating, medians of three runs.

Bars, set before the run: rows out equal labels in (where the file store drops rows, the count says
so); at least 4 times as fast; at most 0.5 times its memory above imports.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import polars as pl

from benchmarks.features.offline import (
    FEATURES,
    FeastJoin,
    appended,
    feast_join,
    in_process,
    label_inputs,
    log_folder,
    peak_mb,
    rss_mb,
)
from benchmarks.report import Report

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

FULL, QUICK = (1_000_000, 200_000, 3), (20_000, 4_000, 1)
FASTER, MEMORY = 4.0, 0.5


def run(options: Options) -> Report:
    events, labels, runs = QUICK if options.quick else FULL
    report = Report("feast_offline", {"events": events, "labels": labels, "runs": runs})
    ours, feasts = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        appended(folder, events)
        for _ in range(runs):
            feasts.append(feast_join(folder, events, labels))
            ours.append(FeastJoin(**in_process(_log_join, folder, events, labels)))
    for what, runs_of in (("over the event log", ours), ("Feast's file store", feasts)):
        report.add(
            store=what,
            seconds=round(median(each.seconds for each in runs_of), 2),
            rows=runs_of[0].rows,
            peak_mb=round(median(each.peak_mb for each in runs_of)),
        )
    faster = median(f.seconds / o.seconds for f, o in zip(feasts, ours, strict=True))
    memory = median(o.peak_mb / f.peak_mb for f, o in zip(feasts, ours, strict=True))
    report.check("rows out", ours[0].rows, f"{labels}", ours[0].rows == labels)
    report.check("file store's time over ours", faster, f">= {FASTER:g}", faster >= FASTER)
    report.check("our memory over the file store's", memory, f"<= {MEMORY:g}", memory <= MEMORY)
    return report


def _log_join(folder: Path, events: int, labels: int) -> dict[str, Any]:
    from feast import FeatureStore, RepoConfig

    from features.definitions import DEFINITIONS
    from features.feast.offline_store import with_now_ms
    from features.feast.registry import declared_objects
    from features.feast.repository import repo_config

    log = log_folder(folder, events)
    config = repo_config("log", folder / "log.db", {}, log) | {"online_store": None}
    store = FeatureStore(config=RepoConfig(repo_path=folder, **config))
    store.apply(list(declared_objects().values()))
    before = rss_mb()
    _, label_rows = label_inputs("user", events, labels)
    time_of = pl.from_epoch("time_ms", time_unit="ms").dt.replace_time_zone("UTC")
    wanted = with_now_ms(label_rows.select("user_id", event_timestamp=time_of).to_pandas())
    names = [n for n, kind in DEFINITIONS["user"].column_types.items() if kind == "integer"]
    refs = [f"user_features:{name}" for name in names[:FEATURES]]
    began = time.perf_counter()
    answer = store.get_historical_features(entity_df=wanted, features=refs).to_df()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": len(answer), "peak_mb": peak_mb() - before}
