"""The four models, fitted alike: the same rows, the same trials, early stopping for all.

Knows networks made of `models.layers.experts`, and LightGBM. Does not know
where rows come from or how results are evaluated.

For small data, all three networks: id embeddings start at zero and are hidden from a share of
the rows (all of them in one trial), since an id that occurs five times is memorised within an
epoch ("one-epoch phenomenon", Zhang et al., CIKM 2022); weights are averaged over the last
steps; validation runs within epochs and uses cross-entropy after calibration, since plain
cross-entropy grows with over-confidence while the ranking still improves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import lightgbm
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.optim.swa_utils import AveragedModel

from benchmarks.multitask.datasets import Dataset, Rows
from models.layers.experts import Architecture, build_experts
from models.ranking.ple.train import seeded_torch
from models.training.calibration import fit_platt

MODELS = ("ple", "shared_bottom", "single_task", "lightgbm")
# Set by validation AUC: with 2,048 rows a step and 6 epochs, networks stopped before learning.
BATCH, EPOCHS, TREES = 512, 8, 150
EXPERT = 32  # width of one expert
CHECKS = 2  # of the validation loss, an epoch
MAX_CHECKS_WITHOUT_GAIN = 4  # in a row, before stopping
AVERAGE = 0.99  # of the weights, a step
DECAY = 1e-2
_CLIP = 5.0  # standardised features, as served

Weights = tuple[Tensor, ...] | list[Tensor]
Columns = tuple[Tensor, Tensor, Tensor, Tensor]
"""users, items: int64 [N]; x: float32 [N, F]; labels: float32 [N, T]."""


@dataclass(frozen=True)
class Trial:
    """One setting of each kind: rate and hidden ids for networks, leaves and rate for LightGBM.

    id_dropout: share of rows in which a user's id, and independently an item's, is hidden in
    training; at 1 ids are never used, also not in prediction.
    """

    rate: float
    id_dropout: float
    leaves: int
    tree_rate: float


TRIALS = (
    Trial(3e-3, 0.3, 15, 0.05),
    Trial(3e-3, 1.0, 31, 0.1),
)


class Net(nn.Module):
    """Embeddings of user and item, their product, and features -> a logit a task [N, T]."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        dataset: Dataset,
        architecture: Architecture,
        tasks: int,
        id_dropout: float,
        width: int = 16,
    ) -> None:
        super().__init__()
        features = dataset.train.x.shape[1]
        self.id_dropout = id_dropout
        self.user = nn.Embedding(dataset.user_count, width)
        self.item = nn.Embedding(dataset.item_count, width)
        for table in (self.user, self.item):
            nn.init.zeros_(table.weight)
        x = torch.from_numpy(dataset.train.x)
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", x.std(0).clamp_min(1e-3))
        self.layers = build_experts(
            architecture, 3 * width + features, tasks=tasks, expert=EXPERT, shared_experts=2
        )
        self.towers = nn.ModuleList(nn.Linear(EXPERT, 1) for _ in range(tasks))

    def forward(self, users: Tensor, items: Tensor, x: Tensor) -> Tensor:
        user, item = self._shown(self.user(users)), self._shown(self.item(items))
        history = ((x - self.mean) / self.std).clamp(-_CLIP, _CLIP)
        hidden = self.layers(torch.cat([user, item, user * item, history], -1))
        logits = [tower(hidden[:, n]) for n, tower in enumerate(self.towers)]
        return torch.cat(logits, -1)

    def _shown(self, ids: Tensor) -> Tensor:
        """Ids [N, D]; hidden ones are 0, like ids that never occurred in training."""
        if not self.training and self.id_dropout < 1:
            return ids
        return ids * (torch.rand(len(ids), 1) >= self.id_dropout)


def fit_predict(
    dataset: Dataset, model: str, trial: Trial, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """P(label) on validation and test rows, [N, T] each; the same seed gives the same.

    Calibrated per task on the validation rows, as the served ranker is on held-out slates.
    """
    valid, test = _logits_of(dataset, model, trial, seed)
    for task, happened in enumerate(dataset.valid.labels.T > 0):
        found = fit_platt(valid[:, task], happened)
        for logits in (valid, test):
            logits[:, task] = found.slope * logits[:, task] + found.shift
    return 1 / (1 + np.exp(-valid)), 1 / (1 + np.exp(-test))


def _logits_of(
    dataset: Dataset, model: str, trial: Trial, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    every = list(range(len(dataset.tasks)))
    if model == "lightgbm":
        return _hstacked([_trees(dataset, task, trial, seed) for task in every])
    if model == "single_task":  # nothing is shared, not even embeddings
        return _hstacked([_network(dataset, "shared_bottom", [t], trial, seed) for t in every])
    return _network(dataset, "ple" if model == "ple" else "shared_bottom", every, trial, seed)


def _hstacked(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])


def _network(
    dataset: Dataset, architecture: Architecture, tasks: list[int], trial: Trial, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stops after `MAX_CHECKS_WITHOUT_GAIN` validation checks without a gain; keeps the best."""
    with seeded_torch(seed, 1) as generator:
        net = Net(dataset, architecture, len(tasks), trial.id_dropout)
        averaged = AveragedModel(net, multi_avg_fn=_towards)
        train, valid = _tensors(dataset.train, tasks), _tensors(dataset.valid, tasks)
        best, best_loss, waited = averaged.state_dict(), np.inf, 0
        for _ in _steps(net, averaged, trial.rate, train, generator):
            loss = _calibrated_loss(_logits(averaged, valid), valid[3])
            waited = 0 if loss < best_loss else waited + 1
            if loss < best_loss:
                best, best_loss = {k: v.clone() for k, v in averaged.state_dict().items()}, loss
            if waited == MAX_CHECKS_WITHOUT_GAIN:
                break
        averaged.load_state_dict(best)
        tables = (_tensors(rows, tasks) for rows in (dataset.valid, dataset.test))
        valid_z, test_z = (_logits(averaged, table).numpy().astype(float) for table in tables)
        return valid_z, test_z


def _towards(averaged: Weights, now: Weights, steps: Tensor | int) -> None:
    """Exponential average over the last 1 / (1 - `AVERAGE`) steps; over fewer at the start."""
    share = 1 - min(AVERAGE, (1 + int(steps)) / (10 + int(steps)))
    torch._foreach_lerp_(averaged, now, share)


def _steps(
    net: Net,
    averaged: AveragedModel,
    rate: float,
    train: Columns,
    generator: torch.Generator,
) -> Iterator[None]:
    """Trains in place; pauses `CHECKS` times an epoch."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=DECAY, fused=True)
    size = len(train[0])
    pause = max(1, size // BATCH // CHECKS)
    order = (torch.split(torch.randperm(size, generator=generator), BATCH) for _ in range(EPOCHS))
    for step, rows in enumerate(chain.from_iterable(order), start=1):
        net.train()
        users, items, x, labels = (column[rows] for column in train)
        optimiser.zero_grad()
        loss: Tensor = binary_cross_entropy_with_logits(net(users, items, x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        averaged.update_parameters(net)
        if step % pause == 0:
            yield


def _calibrated_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean over tasks of cross-entropy after Platt scaling, in units of a constant's; [N, T].

    The scaling is fitted on the same rows: an error that two parameters a task correct is no
    reason to stop. In units of the label's entropy, so that rare and common tasks count alike.
    """
    each = []
    for z, label in zip(logits.double().T, labels.double().T, strict=True):
        found = fit_platt(z.numpy(), label.numpy() > 0)
        scaled = found.slope * z + found.shift
        rate = label.mean().clamp(1e-6, 1 - 1e-6)
        entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
        each.append((softplus(scaled) - label * scaled).mean() / entropy)
    return float(torch.stack(each).mean())


def _logits(net: nn.Module, rows: Columns) -> Tensor:
    net.eval()
    with torch.no_grad():
        logits: Tensor = net(*rows[:3])
    return logits


def _tensors(rows: Rows, tasks: list[int]) -> Columns:
    columns = (rows.users, rows.items, rows.x, rows.labels[:, tasks])
    users, items, x, labels = (torch.from_numpy(np.ascontiguousarray(c)) for c in columns)
    return users, items, x, labels


def _trees(dataset: Dataset, task: int, trial: Trial, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient-boosted trees on the features, without ids."""
    settings = {
        "objective": "binary",
        "learning_rate": trial.tree_rate,
        "num_leaves": trial.leaves,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.8,
        "seed": seed,
        "max_bin": 63,
        "num_threads": 1,
        "verbosity": -1,
    }
    wanted = [np.ascontiguousarray(rows.labels[:, task]) for rows in (dataset.train, dataset.valid)]
    train = lightgbm.Dataset(dataset.train.x, wanted[0])
    valid = lightgbm.Dataset(dataset.valid.x, wanted[1], reference=train)
    stop = lightgbm.early_stopping(20, verbose=False)
    trees = lightgbm.train(settings, train, TREES, valid_sets=[valid], callbacks=[stop])
    valid_z, test_z = (
        np.asarray(trees.predict(rows.x, raw_score=True)) for rows in (dataset.valid, dataset.test)
    )
    return valid_z[:, None], test_z[:, None]
