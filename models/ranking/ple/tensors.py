"""Examples as tensors: point-in-time features through the assembly that serving uses.

Knows ids, times and a bundle's vocabulary. Does not know losses. A group's features are those
that an online reader would have had at the group's moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.ids import id_hashes
from models.ranking.ple.data import RankerExamples
from models.ranking.ple.features import GENRE_BUCKETS, item_columns
from models.ranking.ple.inputs import assemble_users, liking_of_kinds
from models.ranking.ple.network import FIRST_KNOWN
from models.ranking.ple.point_in_time import candidates_at
from models.ranking.ple.runtime import VOCABULARY_FILE, rows_of
from models.recipe import TrainingLog
from models.retrieval.factorisation.config import PARTS
from models.retrieval.factorisation.factors import LikingFactors
from models.retrieval.factorisation.train import CrossFitted
from models.training.datasets import catalogue_items, features_at


@dataclass(frozen=True)
class RankerVocabulary:
    """Hashes that have embedding rows of their own, ascending; int64 each. And the factors of
    users' liking."""

    user: np.ndarray
    item: np.ndarray
    author: np.ndarray
    factors: LikingFactors = field(default_factory=LikingFactors.empty)

    def save(self, bundle: Path) -> None:
        np.savez(bundle / VOCABULARY_FILE, user=self.user, video=self.item, author=self.author)
        self.factors.save(bundle)

    @staticmethod
    def read(bundle: Path) -> RankerVocabulary:
        with np.load(bundle / VOCABULARY_FILE) as stored:
            user, item, author = (stored[name] for name in ("user", "video", "author"))
            return RankerVocabulary(user, item, author, LikingFactors.read(bundle))


@dataclass(frozen=True)
class RankerBatch:
    """Tensors of G groups, as `models.ranking.ple.network.Ranker.forward` takes them.

    user_hash int64 [G], item_hash int64 [G, C]: of the ids, 0 for padding.
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
    liking: Tensor
    real: Tensor
    labels: Tensor
    slot: Tensor
    known: Tensor
    user_hash: Tensor
    item_hash: Tensor

    def __len__(self) -> int:
        return len(self.user)

    def inputs(self) -> tuple[Tensor, ...]:
        """The network's arguments, in order."""
        users = (self.user, self.user_x, self.history, self.history_kind)
        item_x = torch.cat([self.item_x, self.liking], -1)
        return (*users, self.item, self.author, self.genres, item_x)

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
        liking=torch.from_numpy(_liking(vocabulary.factors, user_side, wide["video_hash"])),
        real=torch.from_numpy(examples.real),
        labels=torch.from_numpy(examples.labels.astype(np.float32)),
        slot=torch.from_numpy(examples.slot),
        known=torch.from_numpy(examples.known),
        user_hash=torch.from_numpy(user_side["user_hash"]),
        item_hash=torch.from_numpy(wide["video_hash"]),
    )


def _liking(
    factors: LikingFactors, users: Mapping[str, np.ndarray], item_hashes: np.ndarray
) -> np.ndarray:
    """float32 [G, C, 3]: the parts of each user's liking, as the runtime computes them."""
    found = np.zeros((*item_hashes.shape, len(PARTS)), np.float32)
    if not factors.item_ids:
        return found
    liking = liking_of_kinds(users["history_kind"])
    for row, (user, met) in enumerate(zip(users["user_hash"], users["history"], strict=True)):
        vector = factors.vector(int(user), met, liking[row])
        found[row] = factors.parts(vector, item_hashes[row])
    return found


def with_unseen_liking(batch: RankerBatch, fitted: CrossFitted) -> RankerBatch:
    """The batch with parts by factors that did not learn from the candidate's outcome."""
    real = batch.real.numpy()
    users = np.broadcast_to(batch.user_hash.numpy()[:, None], real.shape)[real]
    parts = fitted.unseen_parts(users, batch.item_hash.numpy()[real])
    liking = torch.zeros_like(batch.liking)
    liking[batch.real] = torch.from_numpy(parts)
    return replace(batch, liking=liking)


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
