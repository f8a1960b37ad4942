"""Examples as tensors: point-in-time features through the assembly that serving uses.

Knows ids, times and a bundle's vocabulary. Does not know losses. A group's features are those
that an online reader would have had at the group's moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.ranking.ple.data import RankerExamples
from models.ranking.ple.features import GENRE_BUCKETS, id_hashes, item_columns
from models.ranking.ple.inputs import assemble_users
from models.ranking.ple.network import FIRST_KNOWN
from models.ranking.ple.point_in_time import candidates_at
from models.ranking.ple.runtime import VOCABULARY_FILE, rows_of
from models.recipe import TrainingLog
from models.training.datasets import catalogue_items, features_at


@dataclass(frozen=True)
class RankerVocabulary:
    """Hashes that have embedding rows of their own, ascending; int64 each."""

    user: np.ndarray
    item: np.ndarray
    author: np.ndarray

    def save(self, bundle: Path) -> None:
        np.savez(bundle / VOCABULARY_FILE, user=self.user, video=self.item, author=self.author)

    @staticmethod
    def read(bundle: Path) -> RankerVocabulary:
        with np.load(bundle / VOCABULARY_FILE) as stored:
            return RankerVocabulary(stored["user"], stored["video"], stored["author"])


@dataclass(frozen=True)
class RankerBatch:
    """Tensors of G groups, as `models.ranking.ple.network.Ranker.forward` takes them.

    `real` bool [G, C] marks candidates that are not padding; `labels` float32 [G, C, T];
    `slot` int64 [G, C], 0 for candidates without an impression; `known` bool [T].
    """

    user: Tensor
    user_x: Tensor
    history: Tensor
    history_kind: Tensor
    item: Tensor
    author: Tensor
    genres: Tensor
    item_x: Tensor
    real: Tensor
    labels: Tensor
    slot: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.user)

    def inputs(self) -> tuple[Tensor, ...]:
        """The network's arguments, in order."""
        users = (self.user, self.user_x, self.history, self.history_kind)
        return (*users, self.item, self.author, self.genres, self.item_x)

    def take(self, rows: Tensor) -> RankerBatch:
        """The groups of these rows, in their order."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return RankerBatch(**{n: v if n == "known" else v[rows] for n, v in fields.items()})


def build_vocabulary(log: TrainingLog) -> RankerVocabulary:
    """Every user with an event, and every item and author of the catalogue."""
    return RankerVocabulary(
        _distinct_hashes(log.events["user_id"].unique().to_list()),
        _distinct_hashes(log.items["video_id"].to_list()),
        _distinct_hashes(log.items["author_id"].drop_nulls().unique().to_list()),
    )


def build_batch(
    log: TrainingLog, examples: RankerExamples, vocabulary: RankerVocabulary
) -> RankerBatch:
    """The examples with their features, point in time from `log`."""
    users = features_at(log, "user", examples.users.tolist(), examples.time_ms)
    user_side = assemble_users(users, examples.time_ms)
    owner, place = np.nonzero(examples.real)
    rows = candidates_at(log, users, examples.time_ms, owner, examples.item[owner, place])
    wide = {
        name: _by_group(values, examples.item.shape, owner, place) for name, values in rows.items()
    }
    return RankerBatch(
        user=torch.from_numpy(rows_of(vocabulary.user, user_side["user_hash"])),
        user_x=torch.from_numpy(user_side["user_x"]),
        history=torch.from_numpy(rows_of(vocabulary.item, user_side["history"])),
        history_kind=torch.from_numpy(user_side["history_kind"]),
        item=torch.from_numpy(rows_of(vocabulary.item, wide["video_hash"])),
        author=torch.from_numpy(rows_of(vocabulary.author, wide["author_hash"])),
        genres=torch.from_numpy(wide["genres"]),
        item_x=torch.from_numpy(wide["video_x"]),
        real=torch.from_numpy(examples.real),
        labels=torch.from_numpy(examples.labels.astype(np.float32)),
        slot=torch.from_numpy(examples.slot),
        known=torch.from_numpy(examples.known),
    )


def genres_by_row(log: TrainingLog, vocabulary: RankerVocabulary) -> Tensor:
    """float32 [2 + items, GENRE_BUCKETS]: each item's genres by embedding row."""
    table = np.zeros((FIRST_KNOWN + len(vocabulary.item), GENRE_BUCKETS), np.float32)
    hashes = id_hashes(log.items["video_id"].to_list())
    table[rows_of(vocabulary.item, hashes)] = item_columns(catalogue_items(log.items)).genres
    return torch.from_numpy(table)


def _distinct_hashes(ids: list[str]) -> np.ndarray:
    return np.unique(id_hashes(ids))


def _by_group(
    values: np.ndarray, shape: tuple[int, ...], owner: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Candidate rows [R, ..] at their places [G, C, ..]; padding is 0."""
    out = np.zeros((*shape, *values.shape[1:]), values.dtype)
    out[owner, place] = values
    return out
