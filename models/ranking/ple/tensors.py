"""Examples as tensors: point-in-time features through the assembly that serving uses.

Knows ids, times and the vocabulary of a bundle. Does not know losses. The features of
a group are those an online reader would have had at the group's moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.ranking.ple.data import Examples
from models.ranking.ple.inputs import (
    GENRE_BUCKETS,
    assemble_users,
    id_hash,
    item_columns,
)
from models.ranking.ple.network import FIRST_KNOWN
from models.ranking.ple.point_in_time import candidates_at
from models.ranking.ple.runtime import VOCABULARY_FILE, rows_of
from models.recipe import TrainingLog
from models.training.datasets import catalogue_items, features_at


@dataclass(frozen=True)
class Vocabulary:
    """Hashes that have embedding rows of their own, ascending; int64 each."""

    user: np.ndarray
    video: np.ndarray
    author: np.ndarray

    def save(self, bundle: Path) -> None:
        np.savez(bundle / VOCABULARY_FILE, user=self.user, video=self.video, author=self.author)

    @staticmethod
    def read(bundle: Path) -> Vocabulary:
        with np.load(bundle / VOCABULARY_FILE) as stored:
            return Vocabulary(stored["user"], stored["video"], stored["author"])


@dataclass(frozen=True)
class Batch:
    """Tensors of G groups, as `models.ranking.ple.network.Ranker.forward` takes them.

    `real` [G, C] marks candidates that are not padding; `labels` [G, C, T] float32;
    `slot` int64 [G, C], 0 for what was never in a slate.
    """

    user: Tensor
    user_x: Tensor
    history: Tensor
    history_kind: Tensor
    video: Tensor
    author: Tensor
    genres: Tensor
    video_x: Tensor
    real: Tensor
    labels: Tensor
    slot: Tensor
    known: Tensor  # bool [T]

    def __len__(self) -> int:
        return len(self.user)

    def inputs(self) -> tuple[Tensor, ...]:
        """The network's arguments, in order."""
        facts = (self.user, self.user_x, self.history, self.history_kind)
        return (*facts, self.video, self.author, self.genres, self.video_x)

    def take(self, rows: Tensor) -> Batch:
        """The groups of these rows, in their order."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Batch(**{n: v if n == "known" else v[rows] for n, v in fields.items()})


def vocabulary_of(log: TrainingLog) -> Vocabulary:
    """Every user with an event, and every video and author of the catalogue."""
    return Vocabulary(
        _hashes(log.events["user_id"].unique().to_list()),
        _hashes(log.items["video_id"].to_list()),
        _hashes(log.items["author_id"].drop_nulls().unique().to_list()),
    )


def batch_of(log: TrainingLog, examples: Examples, vocabulary: Vocabulary) -> Batch:
    """The examples with their features, taken point in time from `log`."""
    users = features_at(log, "user", examples.users.tolist(), examples.time_ms)
    sides = assemble_users(users, examples.time_ms)
    owner, place = np.nonzero(examples.real)
    rows = candidates_at(log, users, examples.time_ms, owner, examples.video[owner, place])
    wide = {
        name: _wide(values, examples.video.shape, owner, place) for name, values in rows.items()
    }
    return Batch(
        user=torch.from_numpy(rows_of(vocabulary.user, sides["user_hash"])),
        user_x=torch.from_numpy(sides["user_x"]),
        history=torch.from_numpy(rows_of(vocabulary.video, sides["history"])),
        history_kind=torch.from_numpy(sides["history_kind"]),
        video=torch.from_numpy(rows_of(vocabulary.video, wide["video_hash"])),
        author=torch.from_numpy(rows_of(vocabulary.author, wide["author_hash"])),
        genres=torch.from_numpy(wide["genres"]),
        video_x=torch.from_numpy(wide["video_x"]),
        real=torch.from_numpy(examples.real),
        labels=torch.from_numpy(examples.labels.astype(np.float32)),
        slot=torch.from_numpy(examples.slot),
        known=torch.from_numpy(examples.known),
    )


def genres_by_row(log: TrainingLog, vocabulary: Vocabulary) -> Tensor:
    """float32 [2 + videos, GENRE_BUCKETS]: what a video of the history is, by embedding row."""
    table = np.zeros((FIRST_KNOWN + len(vocabulary.video), GENRE_BUCKETS), np.float32)
    hashes = np.array([id_hash(video) for video in log.items["video_id"]], np.int64)
    table[rows_of(vocabulary.video, hashes)] = item_columns(catalogue_items(log.items)).genres
    return torch.from_numpy(table)


def _hashes(ids: list[str]) -> np.ndarray:
    return np.unique(np.array([id_hash(each) for each in ids], np.int64))


def _wide(
    values: np.ndarray, shape: tuple[int, ...], owner: np.ndarray, place: np.ndarray
) -> np.ndarray:
    out = np.zeros((*shape, *values.shape[1:]), values.dtype)
    out[owner, place] = values
    return out
