"""How the reasoner is fitted: transitions, ridge, blend, roles and P(convert).

Knows the training log and numpy. Nothing here is random. Does not know how the result is
judged (`rolegen`) or served (`runtime`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from models.layers.transitions import decayed, ridge, transitions
from models.reasoning import roles
from models.reasoning.data import Config, read_histories, split_time
from models.reasoning.reasoner import CONVERT, HISTORY, RIDGE_DECAY, Reasoner
from models.reasoning.sessions import KINDS, Steps, observe
from models.recipe import NotEnoughData, Progress, TrainingLog

_STRONG = ("order",)
_WEAKER = ("like", "share", "follow", "cart", "order")
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Cut:
    """One place in a user's history: the steps before it, and the next one's rows after."""

    done: Steps
    after: Steps


def fit(log: TrainingLog, config: Config, progress: Progress) -> Reasoner:
    """Fits on the first four fifths what the blend and P(convert) are then fitted on top
    of, and ends with tables of the whole log. Raises `NotEnoughData`."""
    progress(0.0, "reading histories")
    base = _items(log, config)
    histories = list(read_histories(log, base.number).values())
    if sum(map(len, histories)) < config.min_steps:
        raise NotEnoughData(
            f"{sum(map(len, histories))} engagements, {config.min_steps} are needed: gather "
            "more play, like or order events"
        )
    split_ms = split_time(log)
    progress(0.1, "transitions of the first four fifths")
    early = _tables(base, [_until(h, split_ms) for h in histories], config)
    progress(0.35, "weights of the blend")
    cuts = _cuts(histories, split_ms, config)
    early = replace(early, blend=_fit_blend(early, cuts))
    progress(0.5, "probability of conversion")
    early = replace(early, convert=_fit_convert(early, cuts))
    progress(0.65, "transitions of the whole log")
    whole = _tables(base, histories, config)
    progress(0.85, "roles")
    sessions = _sessions(histories, base.genres)
    model, _ = roles.fit(sessions)
    progress(1.0, "fitted")
    return replace(whole, blend=early.blend, convert=early.convert, roles=model)


def _items(log: TrainingLog, config: Config) -> Reasoner:
    """An empty reasoner over the most engaged videos of the catalogue."""
    engaged = log.events.filter(pl.col("kind").is_in(KINDS))
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
        video_ids=tuple(items["video_id"].to_list()),
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
        roles=roles.prior(),
    )


def _genres(lists: Sequence[Sequence[str] | None]) -> np.ndarray:
    names = sorted({genre for genres in lists for genre in genres or ()})
    place = {name: n for n, name in enumerate(names)}
    table = np.zeros((len(lists), max(len(names), 1)), dtype=np.float32)
    for row, genres in enumerate(lists):
        table[row, [place[genre] for genre in genres or ()]] = 1.0
    found: np.ndarray = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1.0)
    return found


def _tables(base: Reasoner, histories: Sequence[Steps], config: Config) -> Reasoner:
    n = len(base.video_ids)
    past, future = _pairs(histories, n, config)
    item = np.concatenate([h.item for h in histories])
    kind = np.concatenate([h.kind for h in histories])
    time_ms = np.concatenate([h.time_ms for h in histories])
    age = (int(time_ms.max()) - time_ms) / _DAY_MS if len(time_ms) else time_ms
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


def _pairs(histories: Sequence[Steps], n: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Decayed pasts and what came next, at up to `cuts` even places of every history."""
    past, future = [], []
    for history in histories:
        places = np.linspace(1, len(history) - 1, config.cuts).astype(int)
        for at in np.unique(places[places > 0]):
            newest = history.item[max(0, at - HISTORY) : at][::-1]
            past.append(decayed(newest, RIDGE_DECAY, n))
            then = np.zeros(n, dtype=np.float32)
            then[history.item[at : at + config.horizon]] = 1.0
            future.append(then)
    if not past:
        raise NotEnoughData("no user engaged twice: gather more events per user")
    return np.stack(past), np.stack(future)


def _until(history: Steps, until_ms: int) -> Steps:
    return _rows(history, np.flatnonzero(history.time_ms < until_ms))


def _rows(history: Steps, rows: np.ndarray) -> Steps:
    return Steps(
        history.item[rows], history.kind[rows], history.time_ms[rows], history.session[rows]
    )


def _cuts(histories: Sequence[Steps], split_ms: int, config: Config) -> list[Cut]:
    """Places after the split, where the early tables are judged by what they never saw."""
    cuts = []
    for history in histories:
        late = np.flatnonzero(history.time_ms >= split_ms)
        late = late[late > 0]
        for at in late[:: config.horizon][: config.cuts]:
            before = np.arange(max(0, at - HISTORY), at)
            after = np.arange(at, min(at + config.horizon, len(history)))
            cuts.append(Cut(_rows(history, before), _rows(history, after)))
    return cuts[:1500]


def _fit_blend(early: Reasoner, cuts: Sequence[Cut], rounds: int = 60) -> np.ndarray:
    """Listwise softmax over all items, by gradient steps on four weights."""
    if len(cuts) < 20:
        return early.blend
    stack = np.stack([early.signals(cut.done) for cut in cuts]).astype(np.float32)
    wanted = np.zeros((len(cuts), len(early.video_ids)), dtype=np.float32)
    open_ = np.ones_like(wanted, dtype=bool)
    for row, cut in enumerate(cuts):
        open_[row, cut.done.item] = False
        wanted[row, cut.after.item] = 1.0
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


def _fit_convert(early: Reasoner, cuts: Sequence[Cut]) -> np.ndarray:
    """Logistic regression on two thirds of the cuts, Platt-scaled on the last third."""
    features, label = _engagements(early, cuts)
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


def _engagements(early: Reasoner, cuts: Sequence[Cut]) -> tuple[np.ndarray, np.ndarray]:
    """[E, 6] and [E]: what was engaged with after each cut, and whether it converted."""
    features, labels = [np.zeros((0, len(CONVERT)))], [np.zeros(0)]
    for cut in cuts:
        now_ms = int(cut.after.time_ms[0])
        relevance = early.relevance(cut.done)
        features.append(early.convert_features(cut.done, cut.after.item, now_ms, relevance))
        labels.append(np.isin(cut.after.kind, early.convert_kinds).astype(np.float64))
    return np.concatenate(features), np.concatenate(labels)


def _logistic(features: np.ndarray, label: np.ndarray, penalty: float) -> np.ndarray:
    """Newton's method; the penalty spares the first weight, the bias."""
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
    histories: Sequence[Steps], genres: np.ndarray, longest: int = 30
) -> list[np.ndarray]:
    """Observations per session, long ones cut to their first `longest` steps."""
    found = []
    for history in histories:
        seen = observe(history, genres)
        starts = np.flatnonzero(np.r_[True, np.diff(history.session) > 0][: len(history)])
        for start, end in zip(starts, [*starts[1:], len(history)], strict=True):
            found.append(seen[start : min(end, start + longest)])
    return found
