"""Two real data sets as rows of (user, item, features) with several labels.

Knows where the files lie and how rows are split. Does not know models. Each user's positives
are split in order into history (40 %: features only), training (40 %), validation (8 %) and
test (12 %): by time on MovieLens, by a seeded shuffle on Taobao, which has no times. The
rounding of a user's splits is random, so that users with few rows are in each part by its
share: with a fixed rounding, users with 5 to 8 rows would have validation rows and no test
rows. Item ids are permuted, so that their order cannot leak.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from deploy.simulation.movielens import DataUnavailable, load

CUTS = (0.40, 0.80, 0.88)
NEGATIVES = 2
MOVIELENS_SHARE, TAOBAO_USERS = 0.6, 3_000  # of users: a run is minutes on one thread


class DatasetMissing(RuntimeError):
    """A data set is missing; the message says which one and where it is searched."""


@dataclass(frozen=True)
class Rows:
    """users, items: int64 [N]; x: float32 [N, F]; labels: float32 [N, T]."""

    users: np.ndarray
    items: np.ndarray
    x: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Dataset:
    """One data set, split."""

    name: str
    tasks: tuple[str, ...]
    user_count: int
    item_count: int
    train: Rows
    valid: Rows
    test: Rows
    checksum: str


def movielens(*, quick: bool = False) -> Dataset:
    """Tasks: watched (rated at all), rated >= 4, rated = 5. Raises `DatasetMissing`."""
    try:
        data = load()
    except DataUnavailable as error:
        raise DatasetMissing(f"MovieLens-100K: {error}") from error
    users, items = _codes(data.ratings["user_id"], 0), _codes(data.ratings["video_id"], 1)
    rating = data.ratings["rating"].to_numpy()
    labels = np.stack([rating > 0, rating >= 4, rating == 5], 1).astype(np.float32)
    share = MOVIELENS_SHARE / (2 if quick else 1)
    genres = _genres(data.ratings["video_id"], items, {f.video_id: f.genres for f in data.films})
    return _cut("movielens", ("watched", "at_least_4", "is_5"), users, items, labels, genres, share)


def taobao(*, quick: bool = False) -> Dataset:
    """Tasks: cart, buy; a seeded sample of users. Raises `DatasetMissing`."""
    folder = Path(os.environ.get("TIDEMILL_DATA", "../shared/data")) / "ehcf-taobao"
    paths = {"buy": ["buy.train.txt.gz", "buy.test.txt.gz"], "cart": ["cart.csv.gz"]}
    if not all((folder / name).is_file() for names in paths.values() for name in names):
        raise DatasetMissing(
            f"Taobao (cart, buy) is not in {folder}: set TIDEMILL_DATA to its parent"
        )
    frames = [_pairs(folder / name, kind) for kind, names in paths.items() for name in names]
    pairs = (
        pl.concat(frames).group_by("user", "item").agg(pl.col("cart").max(), pl.col("buy").max())
    )
    rng = np.random.default_rng(5)
    names = np.sort(pairs["user"].unique().to_numpy())
    chosen = rng.choice(names, TAOBAO_USERS // (4 if quick else 1), replace=False)
    pairs = pairs.filter(pl.col("user").is_in(chosen.tolist())).sort("user", "item")
    pairs = pairs[rng.permutation(pairs.height)]
    labels = pairs.select("cart", "buy").to_numpy().astype(np.float32)
    users, items = _codes(pairs["user"], 0), _codes(pairs["item"], 1)
    none = np.zeros((int(items.max()) + 1, 1), np.float32)
    return _cut("taobao", ("cart", "buy"), users, items, labels, none, share=1.0)


def _pairs(path: Path, kind: str) -> pl.DataFrame:
    """Distinct (user, item) of one behaviour; the header's names differ between the files."""
    raw = pl.read_csv(path, separator="\t", has_header=True, truncate_ragged_lines=True)
    first, second = raw.columns[:2]
    pairs = raw.select(user=pl.col(first).cast(pl.Int64), item=pl.col(second).cast(pl.Int64))
    return pairs.with_columns(cart=pl.lit(kind == "cart"), buy=pl.lit(kind == "buy"))


def _cut(
    name: str,
    tasks: tuple[str, ...],
    users: np.ndarray,
    items: np.ndarray,
    labels: np.ndarray,
    traits: np.ndarray,
    share: float,
) -> Dataset:
    """Positives in order -> the four parts, with sampled negatives and features of history."""
    kept = users < int((users.max() + 1) * share)
    users, items, labels = users[kept], items[kept], labels[kept]
    place = _share_of_user(users)
    part = np.searchsorted(CUTS, place, side="right")
    shape = (int(users.max()) + 1, int(items.max()) + 1)
    past = part == 0
    history = _HistoryFeatures(users[past], items[past], labels[past], shape, traits)
    rng = np.random.default_rng(11)
    seen = np.unique(users * shape[1] + items)
    train, valid, test = (
        _rows(users[part == n], items[part == n], labels[part == n], history, seen, rng)
        for n in (1, 2, 3)
    )
    digest = hashlib.sha256(users.tobytes() + items.tobytes() + labels.tobytes()).hexdigest()[:16]
    return Dataset(name, tasks, *shape, train, valid, test, digest)


def _rows(
    users: np.ndarray,
    items: np.ndarray,
    labels: np.ndarray,
    history: _HistoryFeatures,
    seen: np.ndarray,
    rng: np.random.Generator,
) -> Rows:
    """The positives and `NEGATIVES` unseen items for each, in a shuffled order."""
    wide = history.shape[1]
    who, what = np.repeat(users, NEGATIVES), rng.integers(0, wide, len(users) * NEGATIVES)
    fresh = ~np.isin(who * wide + what, seen)
    everyone, everything = np.r_[users, who[fresh]], np.r_[items, what[fresh]]
    every_label = np.vstack([labels, np.zeros((int(fresh.sum()), labels.shape[1]), np.float32)])
    order = rng.permutation(len(everyone))
    everyone, everything = everyone[order], everything[order]
    return Rows(everyone, everything, history.of(everyone, everything), every_label[order])


class _HistoryFeatures:
    """Features of users and items from their history; float32 [N, F]."""

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray,
        shape: tuple[int, int],
        traits: np.ndarray,
    ) -> None:
        self.shape, self._traits = shape, traits
        self._user = np.stack([np.bincount(users, column, shape[0]) for column in labels.T], 1)
        self._item = np.stack([np.bincount(items, column, shape[1]) for column in labels.T], 1)
        matrix = csr_matrix((np.ones(len(users)), (users, items)), shape=shape)
        norm = np.sqrt(np.maximum(np.asarray(matrix.sum(0)).ravel(), 1))
        scaled = matrix.multiply(1 / norm).tocsr()
        self._near = (matrix @ scaled.T @ scaled).tocsr()  # item-item cosine to the user's past
        total = np.maximum(np.bincount(users, minlength=shape[0]), 1)[:, None]
        self._profile = np.asarray(matrix @ traits) / total

    def of(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        near = np.log1p(np.asarray(self._near[users, items]).ravel())[:, None]
        match = (self._profile[users] * self._traits[items]).sum(1, keepdims=True)
        counts = np.log1p(np.hstack([self._user[users], self._item[items]]))
        return np.hstack([counts, near, match, self._traits[items]]).astype(np.float32)


def _codes(names: pl.Series, seed: int) -> np.ndarray:
    """int64 codes from 0 in a seeded order of the distinct names."""
    distinct = np.unique(names.to_numpy())
    place = np.random.default_rng([seed, 3]).permutation(len(distinct))
    return np.asarray(place[np.searchsorted(distinct, names.to_numpy())], np.int64)


def _share_of_user(users: np.ndarray) -> np.ndarray:
    """Position of each row among its user's rows, in [0, 1) and in order; the offset within a
    row's interval is drawn once for each user."""
    order = np.argsort(users, kind="stable")
    count = np.bincount(users)
    start = np.r_[0, np.cumsum(count)[:-1]]
    place = np.empty(len(users))
    within = np.random.default_rng(13).random(len(count))
    place[order] = (np.arange(len(users)) - start[users[order]]) + within[users[order]]
    place /= count[users]
    return place


def _genres(
    names: pl.Series, items: np.ndarray, genres_of: dict[str, tuple[str, ...]]
) -> np.ndarray:
    """float32 [items, G]: 1 where the film has the genre."""
    known = sorted({genre for genres in genres_of.values() for genre in genres})
    table = np.zeros((int(items.max()) + 1, len(known)), np.float32)
    for name, item in set(zip(names.to_list(), items.tolist(), strict=True)):
        for genre in genres_of.get(name, ()):
            table[item, known.index(genre)] = 1
    return table
