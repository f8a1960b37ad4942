"""Feast's offline store over the event log: `get_historical_features` is the point-in-time join.

Knows Feast's interface and the log's folder; importing it imports Feast (seconds). The values are
those of `features.offline.point_in_time`: what the online reader would have returned at that
moment, by event time and arrival. Every row of the entity frame comes back, in its order.

Feast asks for the request value `now_ms` beside `event_timestamp`: state the same moment in
milliseconds (`with_now_ms`). Saved datasets are Parquet files, as in Feast's own file store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.offline_stores.dask import (
    DaskOfflineStore,
    DaskOfflineStoreConfig,
    DaskRetrievalJob,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry

from features.definitions import DEFINITIONS, EntityDefinition
from features.feast.on_demand import status_feature
from features.offline.point_in_time.join import join_features
from features.online.feast_keys import ROW_FEATURE, view_name
from features.store import Status
from features.stored_declaration import adopt, read_declaration
from streams.event_log import EventLog

TIME, NOW = "event_timestamp", "now_ms"


class EventLogOfflineStoreConfig(DaskOfflineStoreConfig):  # type: ignore[misc]
    """`type` names the class; `log_dir` is the folder of the event log."""

    type: Any = "features.feast.offline_store.EventLogOfflineStore"
    log_dir: str


class EventLogOfflineStore(DaskOfflineStore):  # type: ignore[misc]
    """Reads history from the event log, and saved datasets from their files."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],  # noqa: ARG004
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,  # noqa: ARG004
        project: str,  # noqa: ARG004
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,  # noqa: ARG004
        **_: Any,
    ) -> RetrievalJob:
        """Joined when the result is asked for.

        Raises:
            ValueError: the frame is no DataFrame, lacks a column, or its times do not agree.
        """
        frame = _checked(entity_df)
        log_dir = Path(config.offline_store.log_dir)
        adopt(read_declaration(log_dir))
        wanted = list(_features(feature_refs))
        for definition, _ignored in wanted:
            if definition.id_column not in frame.columns:
                raise ValueError(f"the entity frame has no column {definition.id_column!r}")
        return _Job(
            lambda: _joined(EventLog(log_dir), frame, wanted, full_feature_names),
            full_feature_names,
            config.repo_path,
            RetrievalMetadata(
                features=[ref for ref in feature_refs if not ref.endswith(f":{ROW_FEATURE}")],
                keys=[name for name in frame.columns if name != TIME],
                min_event_timestamp=frame[TIME].min(),
                max_event_timestamp=frame[TIME].max(),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(*_: object, **__: object) -> RetrievalJob:
        raise ValueError(
            "rows are rebuilt from the event log by `tidemill features backfill`, which "
            "`feast materialize` runs where the provider is features.feast.provider.LogProvider"
        )


class _Job(DaskRetrievalJob):  # type: ignore[misc]
    """Typed columns come from the join, so no on-demand view is left to be computed."""

    def __init__(
        self,
        join: Callable[[], pa.Table],
        full_feature_names: bool,
        repo_path: Any,
        metadata: RetrievalMetadata,
    ) -> None:
        super().__init__(join, full_feature_names, repo_path, [], metadata)
        self._join = join

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self._join()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002
        return self._join().to_pandas()


def with_now_ms(frame: pd.DataFrame) -> pd.DataFrame:
    """The entity frame with `now_ms`, int64, from `event_timestamp`."""
    return frame.assign(**{NOW: _milliseconds(frame)})


def _milliseconds(frame: pd.DataFrame) -> np.ndarray:
    times = pd.to_datetime(frame[TIME], utc=True)
    milliseconds: np.ndarray = times.astype("datetime64[ms, UTC]").astype("int64").to_numpy()
    return milliseconds


def _checked(frame: pd.DataFrame | str | None) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame):
        raise ValueError("state the entity frame as a pandas DataFrame: the event log takes no SQL")
    for name in (TIME, NOW):
        if name not in frame.columns:
            raise ValueError(f"the entity frame has no column {name!r}")
    differ = np.flatnonzero(frame[NOW].to_numpy() != _milliseconds(frame))
    if len(differ):
        raise ValueError(
            f"row {differ[0]}: now_ms is not its event_timestamp in milliseconds; history is read "
            "at its own time (features.feast.offline_store.with_now_ms sets it)"
        )
    return frame


def _features(refs: Sequence[str]) -> Iterator[tuple[EntityDefinition, list[str]]]:
    """Each entity that is asked for, with its features' names in the order of the references.

    The stored row is what Feast adds for its on-demand views; it is not history.
    """
    by_view: dict[str, list[str]] = {}
    for ref in refs:
        view, _, name = ref.partition(":")
        if name != ROW_FEATURE:
            by_view.setdefault(view, []).append(name)
    for definition in DEFINITIONS.values():
        if names := by_view.pop(f"{definition.name}_features", []):
            yield definition, names
    for view in by_view:
        known = ", ".join(f"{name}_features" for name in DEFINITIONS)
        raise ValueError(f"there is no history of the view {view!r}; views: {known}")
    asked = {ref.partition(":")[0] for ref in refs}
    if asked and all(ref.endswith(f":{ROW_FEATURE}") for ref in refs):
        views = ", ".join(view_name(d) for d in DEFINITIONS.values())
        raise ValueError(f"{views} hold stored rows, which have no history: ask E_features")


def _joined(
    log: EventLog,
    frame: pd.DataFrame,
    wanted: Sequence[tuple[EntityDefinition, list[str]]],
    full_names: bool,
) -> pa.Table:
    found = pa.Table.from_pandas(frame, preserve_index=False)
    times = _milliseconds(frame)
    for definition, names in wanted:
        ids = pl.Series(definition.id_column, frame[definition.id_column].astype(str).to_numpy())
        labels = pl.DataFrame({definition.id_column: ids, "time_ms": times})
        events = log.events_of(definition.id_column, ids.unique(), _until(times))
        features = join_features(events, labels, definition.name).with_columns(
            pl.col("status").replace_strict(_STATUS).alias(status_feature(definition.name))
        )
        for name in names:
            shown = f"{definition.name}_features__{name}" if full_names else name
            found = found.append_column(shown, features[name].to_arrow())
    return found


def _until(times: np.ndarray) -> int:
    return int(times.max(initial=0)) + 1


_STATUS = {status.value: status.name.lower() for status in Status}
