"""Fitting of the reasoner: transitions, ridge, blend, roles and P(convert).

Knows the training log. Nothing is random. Does not know how the result is evaluated (`recipe`)
or served (`runtime`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from models.layers.transitions import decayed, ridge, transitions
from models.reasoning import roles
from models.reasoning.config import ReactivationConfig
from models.reasoning.data import engagements, read_histories
from models.reasoning.reasoner import CONVERT, HISTORY, RIDGE_DECAY, Reasoner
from models.reasoning.sessions import KINDS, EngagementSteps, observe_steps
from models.recipe import NotEnoughData, TrainingLog
from models.training.datasets import split_time_ms
from streams.contract.clock import DAY_MS
from streams.contract.declaration import contract
from streams.progress import ProgressCallback

_STRONG = ("order",)
_WEAKER = ("like", "share", "follow", "cart", "order")


@dataclass(frozen=True)
class TrainingSplit:
    """One split of a user's history: the steps before it, and the next ones after it."""

    past: EngagementSteps
    future: EngagementSteps


def fit_reasoner(
    log: TrainingLog, config: ReactivationConfig, progress: ProgressCallback
) -> Reasoner:
    """Fits a reasoner on a log.

    Tables of the first four fifths serve to fit the blend and P(convert) on the last fifth; the
    result has the tables of the whole log. Raises `NotEnoughData`.
    """
    progress(0.0, "reading histories")
    base = _items(log, config)
    histories = list(read_histories(log, base.number).values())
    if sum(map(len, histories)) < config.min_steps:
        raise NotEnoughData(
            f"{sum(map(len, histories))} engagements, {config.min_steps} are needed: gather "
            "more play, like or order events"
        )
    split_ms = split_time_ms(log, kinds=contract().signals.engaged)
    progress(0.1, "transitions of the first four fifths")
    early = _tables(base, [_until(h, split_ms) for h in histories], config)
    progress(0.35, "weights of the blend")
    splits = _splits(histories, split_ms, config)
    early = replace(early, blend=_fit_blend(early, splits))
    progress(0.5, "probability of conversion")
    early = replace(early, convert=_fit_convert(early, splits))
    progress(0.65, "transitions of the whole log")
    whole = _tables(base, histories, config)
    progress(0.85, "roles")
    sessions = _sessions(histories, base.genres)
    model, _ = roles.fit_roles(sessions)
    progress(1.0, "fitted")
    return replace(whole, blend=early.blend, convert=early.convert, roles=model)


def _items(log: TrainingLog, config: ReactivationConfig) -> Reasoner:
    """An empty reasoner over the most engaged items of the catalogue."""
    engaged = engagements(log)
    counts = engaged.group_by("video_id").len()
    items = (
        log.items.join(counts, on="video_id", how="left")
        .sort([pl.col("len").fill_null(0), "video_id"], descending=[True, False])
        .head(config.max_items)
    )
    orders = int((engaged["kind"] == "order").sum())
    strong = _STRONG if orders >= config.min_conversions else _WEAKER
    n = len(items)
    zero, square = np.zeros(n, dtype=np.float32), np.zeros((0, 0), dtype=np.float32)
    return Reasoner(
        item_ids=tuple(items["video_id"].to_list()),
        available=items["available"].fill_null(True).to_numpy().astype(bool),
        f1=square,
        ridge=square,
        popular=zero,
        recent=zero,
        genres=_genres(items["genres"].to_list()),
        item_rate=zero,
        blend=np.array([1.0, 0.5, 0.5, 0.5]),
        convert=np.zeros(len(CONVERT)),
        convert_kinds=tuple(KINDS.index(kind) for kind in strong),
        roles=roles.prior_role_model(),
    )


def _genres(lists: Sequence[Sequence[str] | None]) -> np.ndarray:
    names = sorted({genre for genres in lists for genre in genres or ()})
    place = {name: n for n, name in enumerate(names)}
    table = np.zeros((len(lists), max(len(names), 1)), dtype=np.float32)
    for row, genres in enumerate(lists):
        table[row, [place[genre] for genre in genres or ()]] = 1.0
    found: np.ndarray = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1.0)
    return found


def _tables(
    base: Reasoner, histories: Sequence[EngagementSteps], config: ReactivationConfig
) -> Reasoner:
    n = len(base.item_ids)
    past, future = _pairs(histories, n, config)
    item = np.concatenate([h.item for h in histories])
    kind = np.concatenate([h.kind for h in histories])
    time_ms = np.concatenate([h.time_ms for h in histories])
    age = (int(time_ms.max()) - time_ms) / DAY_MS if len(time_ms) else time_ms
    seen = np.bincount(item, minlength=n)
    converted = np.bincount(item, np.isin(kind, base.convert_kinds), minlength=n)
    share = float(converted.sum() + 1) / float(seen.sum() + 2)
    rate = (converted + 20 * share) / (seen + 20)
    return replace(
        base,
        f1=transitions([h.item for h in histories], n),
        ridge=ridge(past, future, config.penalty),
        popular=_log_counts(seen.astype(np.float64)),
        recent=_log_counts(np.bincount(item, 0.5 ** (age / 14), minlength=n)),
        item_rate=np.log(rate / (1 - rate)).astype(np.float32),
    )


def _log_counts(counts: np.ndarray) -> np.ndarray:
    log = np.log1p(counts)
    found: np.ndarray = ((log - log.mean()) / max(float(log.std()), 1e-6)).astype(np.float32)
    return found


def _pairs(
    histories: Sequence[EngagementSteps], n: int, config: ReactivationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Decayed pasts and next items, float32 [C, N] each, at up to `splits` even places of every
    history."""
    past, future = [], []
    for history in histories:
        places = np.linspace(1, len(history) - 1, config.splits).astype(int)
        for at in np.unique(places[places > 0]):
            newest = history.item[max(0, at - HISTORY) : at][::-1]
            past.append(decayed(newest, RIDGE_DECAY, n))
            following = np.zeros(n, dtype=np.float32)
            following[history.item[at : at + config.horizon]] = 1.0
            future.append(following)
    if not past:
        raise NotEnoughData("no user engaged twice: gather more events per user")
    return np.stack(past), np.stack(future)


def _until(history: EngagementSteps, until_ms: int) -> EngagementSteps:
    return _rows(history, np.flatnonzero(history.time_ms < until_ms))


def _rows(history: EngagementSteps, rows: np.ndarray) -> EngagementSteps:
    return EngagementSteps(
        history.item[rows], history.kind[rows], history.time_ms[rows], history.session[rows]
    )


def _splits(
    histories: Sequence[EngagementSteps], split_ms: int, config: ReactivationConfig
) -> list[TrainingSplit]:
    """Splits after `split_ms`, on data that the early tables were not fitted on."""
    splits = []
    for history in histories:
        late = np.flatnonzero(history.time_ms >= split_ms)
        late = late[late > 0]
        for at in late[:: config.horizon][: config.splits]:
            past = np.arange(max(0, at - HISTORY), at)
            future = np.arange(at, min(at + config.horizon, len(history)))
            splits.append(TrainingSplit(_rows(history, past), _rows(history, future)))
    return splits[:1500]


def _fit_blend(early: Reasoner, splits: Sequence[TrainingSplit], rounds: int = 60) -> np.ndarray:
    """Four weights of the signals: listwise softmax over all items, by gradient steps."""
    if len(splits) < 20:
        return early.blend
    stack = np.stack([early.signals(split.past) for split in splits]).astype(np.float32)
    wanted = np.zeros((len(splits), len(early.item_ids)), dtype=np.float32)
    open_ = np.ones_like(wanted, dtype=bool)
    for row, split in enumerate(splits):
        open_[row, split.past.item] = False
        wanted[row, split.future.item] = 1.0
    wanted *= open_
    rows = wanted.sum(axis=1) > 0
    stack, wanted, open_ = stack[rows], wanted[rows], open_[rows]
    wanted /= wanted.sum(axis=1, keepdims=True)
    weights = early.blend.copy()
    for _ in range(rounds):
        logits = np.where(open_, np.einsum("j,cjn->cn", weights.astype(np.float32), stack), -1e9)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = np.einsum("cjn,cn->j", stack, wanted - p) / len(stack)
        weights = np.maximum(weights + 0.5 * gradient, 0.0)
    return weights


def _fit_convert(early: Reasoner, splits: Sequence[TrainingSplit]) -> np.ndarray:
    """Logistic regression on two thirds of the splits, Platt-scaled on the last third."""
    features, label = _engagements(early, splits)
    if len(label) < 100 or label.sum() < 5 or (1 - label).sum() < 5:
        share = (label.sum() + 1) / (len(label) + 2)
        return np.array([np.log(share / (1 - share)), 0, 0, 0, 0, 0], dtype=np.float64)
    third = len(label) * 2 // 3
    weights = _logistic(features[:third], label[:third], 1.0)
    raw = features[third:] @ weights
    platt = _logistic(np.stack([np.ones_like(raw), raw], axis=1), label[third:], 1e-3)
    scaled = weights * platt[1]
    scaled[0] += platt[0]
    found: np.ndarray = scaled
    return found


def _engagements(early: Reasoner, splits: Sequence[TrainingSplit]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [E, 6] and [E]: features of the engagements after each split, and conversions."""
    features, labels = [np.zeros((0, len(CONVERT)))], [np.zeros(0)]
    for split in splits:
        now_ms = int(split.future.time_ms[0])
        relevance = early.relevance(split.past)
        features.append(early.convert_features(split.past, split.future.item, now_ms, relevance))
        labels.append(np.isin(split.future.kind, early.convert_kinds).astype(np.float64))
    return np.concatenate(features), np.concatenate(labels)


def _logistic(features: np.ndarray, label: np.ndarray, penalty: float) -> np.ndarray:
    """Newton's method; the first weight, the bias, is not penalised."""
    weights = np.zeros(features.shape[1])
    shrink = np.full(features.shape[1], penalty)
    shrink[0] = 1e-6
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (label - p) - shrink * weights
        curve = (features * (p * (1 - p))[:, None]).T @ features + np.diag(shrink)
        weights = weights + np.linalg.solve(curve, gradient)
    return weights


def _sessions(
    histories: Sequence[EngagementSteps], genres: np.ndarray, longest: int = 30
) -> list[np.ndarray]:
    """Observations per session, each up to its first `longest` steps."""
    found = []
    for history in histories:
        seen = observe_steps(history, genres)
        starts = np.flatnonzero(np.r_[True, np.diff(history.session) > 0][: len(history)])
        for start, end in zip(starts, [*starts[1:], len(history)], strict=True):
            found.append(seen[start : min(end, start + longest)])
    return found
