"""Training examples of the ranker: groups of candidates that one user chose among.

Knows two sources. *Impressions*: slates with matured feedback; candidates without an action are
negatives. *Unlogged interactions*: actions without an impression, the only ones in replayed
histories. The ranker learns from them what users liked among what they met, without negatives.
Where a caller asks for negatives, they are sampled per user and time, a stated share uniformly
from the catalogue of that time and the rest from earlier interactions (by popularity as it then
was), never an item that the user ever acted on. Does not know features or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from models.ranking.tasks import SHIPPED_TASKS, RankerTasks, known_names
from models.recipe import NotEnoughData, TrainingLog
from models.training.actions import USUAL, done, last_values, with_value_liking
from streams.contract.clock import DAY_MS
from streams.contract.impression import UNRANKED_ARMS

PRIOR_IMPRESSIONS = 50.0  # strength of the prior in `slot_examination`, per slot
MIN_ACTIONS, MIN_USERS, MIN_ITEMS = 200, 10, 20
_FEED = "feed"

_RANKED = pl.col("team").is_null() & ~pl.col("arm").is_in(UNRANKED_ARMS).fill_null(False)


@dataclass(frozen=True)
class RankerExamples:
    """G groups of up to C candidates.

    users: str [G]; time_ms: int64 [G], the moment of the features; item: int64 [G, C], the row
    of the log's items, -1 for padding; labels: bool [G, C, T]; known: bool [T], tasks that the
    source can show at all. weights: float32 [G, T], the fusion weights drawn for a slate, and
    log_density: float32 [G] of the draw; NaN where the policy's mean ranked.

    slot: int64 [G, C]; propensity: float32 [G, C]; release: str [G]. Unlogged interactions have
    slot 0, propensity 1, release "", and NaN weights. ranked: bool [G], False for slates of
    popularity and of two teams, whose order not one ranker chose. tasks: of the labels' last axis.
    """

    users: np.ndarray
    time_ms: np.ndarray
    item: np.ndarray
    labels: np.ndarray
    known: np.ndarray
    slot: np.ndarray
    propensity: np.ndarray
    release: np.ndarray
    weights: np.ndarray
    log_density: np.ndarray
    ranked: np.ndarray
    tasks: RankerTasks = SHIPPED_TASKS

    def __len__(self) -> int:
        return len(self.users)

    @property
    def impressions(self) -> bool:
        """Whether these are slates of a release, not unlogged interactions."""
        return bool(len(self)) and bool((self.release != "").any())

    @property
    def real(self) -> np.ndarray:
        """bool [G, C]: candidates that are not padding."""
        return self.item >= 0

    @property
    def acted(self) -> np.ndarray:
        """bool [G, C]: candidates with any action."""
        return np.asarray(self.labels.any(-1))

    def take(self, rows: np.ndarray) -> RankerExamples:
        """The groups of these rows, in their order."""
        return RankerExamples(
            self.users[rows],
            self.time_ms[rows],
            self.item[rows],
            self.labels[rows],
            self.known,
            self.slot[rows],
            self.propensity[rows],
            self.release[rows],
            self.weights[rows],
            self.log_density[rows],
            self.ranked[rows],
            self.tasks,
        )

    def since(self, time_ms: int) -> RankerExamples:
        """The groups at or after `time_ms`."""
        return self.take(np.flatnonzero(self.time_ms >= time_ms))

    def before(self, time_ms: int) -> RankerExamples:
        """The groups before `time_ms`."""
        return self.take(np.flatnonzero(self.time_ms < time_ms))

    def newest(self, count: int) -> RankerExamples:
        """The last `count` groups in time, in order of time."""
        order = np.argsort(self.time_ms, kind="stable")
        return self.take(order[-count:] if count else order[:0])


def unlogged_interactions(log: TrainingLog, tasks: RankerTasks = SHIPPED_TASKS) -> pl.DataFrame:
    """A user's first interaction with an item, where no impression was logged.

    Columns: user_id, item (int64, row of the log's items), time_ms, one bool per task; ordered
    by time. Actions within a day of the first belong to it; later ones are left out. So is an
    interaction at the item's creation: where the catalogue knows an item only from its first
    event, the item's age would reveal the label.
    """
    rows = log.items.select("video_id", "created_ms").with_row_index("item")
    key = ["user_id", "video_id"]
    named = list(zip(known_names(tasks), tasks.tasks, strict=True))
    kinds = [name for name, _ in named]
    return (
        with_value_liking(log.events)
        .lazy()
        .filter(pl.col("kind").is_in(kinds) & pl.col("impression").is_null())
        .with_columns(first=pl.col("event_time_ms").min().over(key))
        .filter(pl.col("event_time_ms") - pl.col("first") < DAY_MS)
        .group_by(key)
        .agg(
            pl.col("first").first().alias("time_ms"),
            *(done(name, valued=task.valued).any().alias(task.name) for name, task in named),
        )
        .join(rows.lazy().cast({"item": pl.Int64}), on="video_id")
        .filter(pl.col("time_ms") > pl.col("created_ms"))
        .sort("time_ms", "user_id", "video_id")
        .collect()
    )


def unlogged_examples(
    log: TrainingLog,
    *,
    negatives: int,
    uniform_share: float,
    since_ms: int,
    count: int,
    seed: int,
    whole_catalogue: int = 0,
    tasks: RankerTasks = SHIPPED_TASKS,
) -> RankerExamples:
    """Groups of one interaction and `negatives` sampled items, features 1 ms before it.

    At most `count` interactions from `since_ms` on, drawn at random by `seed`. `uniform_share`
    of the negatives are drawn uniformly from the catalogue of that time, the first
    `whole_catalogue` of them from all items, including those that no user has played yet.
    """
    rng = np.random.default_rng(seed)
    seen = unlogged_interactions(log, tasks)
    times = seen["time_ms"].to_numpy()
    rows = np.flatnonzero(times >= since_ms)
    rows = np.sort(rng.choice(rows, min(count, len(rows)), replace=False))
    labels = np.zeros((len(rows), 1 + negatives, len(tasks)), bool)
    labels[:, 0] = seen.select(tasks.names).to_numpy()[rows]
    item = np.full((len(rows), 1 + negatives), -1, np.int64)
    item[:, 0] = seen["item"].to_numpy()[rows]
    item[:, 1:] = _negatives(log, seen, rows, negatives, uniform_share, whole_catalogue, rng)
    return RankerExamples(
        users=seen["user_id"].to_numpy()[rows],
        time_ms=times[rows] - 1,  # so that the action itself is not a feature
        item=item,
        labels=labels,
        known=_known_tasks(seen, tasks, compared=negatives > 0),
        slot=np.zeros(item.shape, np.int64),
        propensity=np.ones(item.shape, np.float32),
        release=np.full(len(rows), "", object),
        weights=np.full((len(rows), len(tasks)), np.nan, np.float32),
        log_density=np.full(len(rows), np.nan, np.float32),
        ranked=np.ones(len(rows), bool),
        tasks=tasks,
    )


def _known_tasks(seen: pl.DataFrame, tasks: RankerTasks, *, compared: bool) -> np.ndarray:
    """bool [T]: tasks that interactions can show. Without other items to compare with, a play is
    none: every interaction has one."""
    known: np.ndarray = seen.select(pl.col(tasks.names).any()).to_numpy()[0]
    comparable: np.ndarray = np.array([compared or n != tasks.base for n in range(len(tasks))])
    found: np.ndarray = known & comparable
    return found


def _negatives(
    log: TrainingLog,
    seen: pl.DataFrame,
    rows: np.ndarray,
    count: int,
    uniform_share: float,
    whole_catalogue: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """int64 [rows, count] of item rows, -1 where three draws gave only the user's own items."""
    items, n_items = seen["item"].to_numpy(), log.items.height
    user = seen["user_id"].rank("dense").to_numpy().astype(np.int64)
    own = np.unique(user * n_items + items)
    created = np.sort(log.items["created_ms"].to_numpy())
    by_age = np.argsort(log.items["created_ms"].to_numpy(), kind="stable")
    existing = np.maximum(np.searchsorted(created, seen["time_ms"].to_numpy()[rows], "right"), 1)
    reach = np.where(np.arange(count) < whole_catalogue, n_items, existing[:, None])
    drawn = np.full((len(rows), count), -1, np.int64)
    even = np.arange(count) < round(count * uniform_share)
    for _ in range(3):
        from_all = by_age[(rng.random(drawn.shape) * reach).astype(np.int64)]
        earlier = (rng.random(drawn.shape) * np.maximum(rows, 1)[:, None]).astype(np.int64)
        fresh = np.where(even, from_all, items[earlier])
        taken = np.isin(user[rows][:, None] * n_items + fresh, own)
        drawn = np.where((drawn < 0) & ~taken, fresh, drawn)
    return drawn


def impression_examples(
    log: TrainingLog, *, count: int, tasks: RankerTasks = SHIPPED_TASKS
) -> RankerExamples:
    """The newest `count` slates of the feed that were seen, one group per request.

    Only items that were on screen are candidates; features are taken at the time of serving.
    """
    seen = _seen_feedback(log, tasks)
    requests = seen.group_by("request_id", maintain_order=True).agg(
        pl.col(
            "user_id", "served_at_ms", "release", "weights", "log_density", "arm", "team"
        ).first(),
        pl.len().alias("n"),
    )
    requests = requests.sort("served_at_ms", "request_id").tail(count).with_row_index("group")
    seen = seen.join(requests.select("request_id", "group"), on="request_id")
    seen = seen.sort("group", "slot").with_columns(
        place=pl.int_range(pl.len()).over("group").cast(pl.Int64)
    )
    width = int(requests["n"].max() or 0)  # type: ignore[arg-type]
    at = (seen["group"].to_numpy(), seen["place"].to_numpy())
    shape = (requests.height, width)
    labels = seen.select(_label(n) for n in range(len(tasks))).to_numpy()
    labels = labels.astype(bool).reshape(-1, len(tasks))
    weights, log_density = _drawn_weights(requests, len(tasks))
    return RankerExamples(
        users=requests["user_id"].to_numpy(),
        time_ms=requests["served_at_ms"].to_numpy().astype(np.int64),
        item=_spread(shape, at, seen["item"].to_numpy(), -1, np.int64),
        labels=_spread((*shape, len(tasks)), at, labels, 0, np.bool_),
        known=np.ones(len(tasks), bool),
        slot=_spread(shape, at, seen["slot"].to_numpy(), 0, np.int64),
        propensity=_spread(shape, at, seen["propensity"].to_numpy(), 1, np.float32),
        release=requests["release"].to_numpy(),
        weights=weights,
        log_density=log_density,
        ranked=requests.select(_RANKED).to_series().to_numpy(),
        tasks=tasks,
    )


def _drawn_weights(requests: pl.DataFrame, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [G, T] that slates were ranked with and the draw's log density [G].

    Both are NaN unless the weights are of these tasks and on the simplex, and a density is
    logged.
    """
    weights = np.full((requests.height, tasks), np.nan, np.float32)
    density = requests["log_density"].fill_null(np.nan).to_numpy().astype(np.float32)
    for row, logged in enumerate(requests["weights"].to_list()):
        if logged is not None and len(logged) == tasks:
            weights[row] = [np.nan if each is None else each for each in logged]
    valid = np.isfinite(density) & (weights > 0).all(1) & (np.abs(weights.sum(1) - 1) < 1e-3)
    weights[~valid], density = np.nan, np.where(valid, density, np.float32(np.nan))
    return weights / weights.sum(1, keepdims=True), density


def _label(column: int) -> str:
    return f"label {column}"


def _seen_feedback(log: TrainingLog, tasks: RankerTasks) -> pl.DataFrame:
    """Feedback of the feed that was seen, with the item's row and one bool per task.

    A task that this log has no column for was not done.
    """
    rows = pl.DataFrame(
        {"video_id": log.items["video_id"], "item": np.arange(log.items.height, dtype=np.int64)}
    )
    feed = log.feedback.filter((pl.col("surface") == _FEED) & pl.col("shown_at_ms").is_not_null())
    feed = feed.join(rows, on="video_id")
    values = last_values(log) if any(task.valued for task in tasks.tasks) else None
    for column, (name, task) in enumerate(zip(known_names(tasks), tasks.tasks, strict=True)):
        happened = pl.col(name).fill_null(False) if name in feed.columns else pl.lit(False)
        if task.valued and values is not None:
            stated = values.filter(kind=name).drop("kind")
            pair = ["user_id", "video_id"]
            feed = feed.join(stated, on=pair, how="left", maintain_order="left")
            happened = happened & (pl.col("value_liking") >= USUAL).fill_null(True)
        feed = feed.with_columns(happened.alias(_label(column))).drop("value_liking", strict=False)
    return feed


def _spread(
    shape: tuple[int, ...],
    at: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    fill: float,
    dtype: type,
) -> np.ndarray:
    out: np.ndarray = np.full(shape, fill, dtype)
    out[at] = values
    return out


def slot_examination(examples: RankerExamples) -> np.ndarray:
    """P(a slot is looked at) of the feed's slates (`relative_examination`)."""
    return relative_examination(examples.acted, examples.real, examples.slot)


def relative_examination(acted: np.ndarray, real: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """P(a slot is looked at), relative to the first slot; float64 [slots], in (0, 1].

    acted, real: bool [G, C]; slot: int [G, C]. The rate of action by slot, shrunk to the prior
    1 / log2(slot + 2). Better items stand higher, so the raw rate overstates the decay; the
    shrinkage and the callers' clips bound that error.
    """
    slots = slot[real]
    prior = 1 / np.log2(np.arange(int(slots.max(initial=0)) + 1) + 2)
    shown = np.bincount(slots, minlength=len(prior))
    done = np.bincount(slots, weights=acted[real], minlength=len(prior))
    first = max(done[0] / max(shown[0], 1), 1e-3)
    relative = (done / first + PRIOR_IMPRESSIONS * prior) / (shown + PRIOR_IMPRESSIONS)
    return np.asarray(np.clip(relative, 0.05, 1.0))


def check_enough_data(log: TrainingLog, tasks: RankerTasks = SHIPPED_TASKS) -> None:
    """Raises `NotEnoughData`, naming what is missing and how much of it."""
    acted = log.events.filter(pl.col("kind").is_in(known_names(tasks)))
    have = {
        "actions": (acted.height, MIN_ACTIONS),
        "users with actions": (acted["user_id"].n_unique(), MIN_USERS),
        "items in the catalogue": (log.items.height, MIN_ITEMS),
    }
    short = [f"{what}: {n} of {least}" for what, (n, least) in have.items() if n < least]
    if short:
        raise NotEnoughData(f"the ranker cannot be trained yet; {'; '.join(short)}")
