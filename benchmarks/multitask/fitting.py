"""The four models, fitted alike: the same rows, the same trials, early stopping for all.

Knows networks made of `models.ranking.network`'s layers, and LightGBM. Does not know
where rows come from nor how results are judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.multitask.data import Proxy, Rows
from models.ranking.network import Architecture, Size, extraction
from models.ranking.training import repeatable

MODELS = ("ple", "shared_bottom", "single_task", "lightgbm")
# Set by validation AUC: with 2,048 rows a step and 6 epochs, networks stopped before learning.
BATCH, EPOCHS, PATIENCE, TREES = 512, 10, 1, 150


@dataclass(frozen=True)
class Trial:
    """One setting of each kind: rate and decay for networks, leaves and rate for LightGBM."""

    rate: float
    decay: float
    leaves: int
    tree_rate: float


TRIALS = (
    Trial(3e-3, 1e-2, 15, 0.05),
    Trial(1e-3, 1e-4, 31, 0.1),
)


class Net(nn.Module):
    """Embeddings of user and item, their product, and features -> a logit a task [N, T]."""

    def __init__(self, proxy: Proxy, architecture: Architecture, tasks: int, width: int = 16):
        super().__init__()
        features = proxy.train.x.shape[1]
        size = Size(
            users=proxy.user_count,
            videos=proxy.item_count,
            authors=0,
            user_x=0,
            video_x=features,
            genres=0,
            kinds=0,
            tasks=tasks,
            width=width,
            expert=32,
            architecture=architecture,
        )
        self.user = nn.Embedding(size.users, width)
        self.item = nn.Embedding(size.videos, width)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.05)
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.layers = extraction(3 * width + features, size)
        self.towers = nn.ModuleList(nn.Linear(size.expert, 1) for _ in range(tasks))

    def forward(self, users: Tensor, items: Tensor, x: Tensor) -> Tensor:
        user, item = self.user(users), self.item(items)
        hidden = self.layers(torch.cat([user, item, user * item, self.norm(x)], -1))
        logits = [tower(hidden[:, n]) for n, tower in enumerate(self.towers)]
        return torch.cat(logits, -1)


def fitted(proxy: Proxy, model: str, trial: Trial, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """P(label) on validation and test rows, [N, T] each; the same seed gives the same."""
    every = list(range(len(proxy.tasks)))
    if model == "lightgbm":
        return _joined([_trees(proxy, task, trial, seed) for task in every])
    if model == "single_task":  # nothing is shared, embeddings neither
        return _joined([_network(proxy, "shared_bottom", [t], trial, seed) for t in every])
    return _network(proxy, "ple" if model == "ple" else "shared_bottom", every, trial, seed)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])


def _network(
    proxy: Proxy, architecture: Architecture, tasks: list[int], trial: Trial, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stops when the validation loss has not fallen for `PATIENCE` epochs; the best is kept."""
    with repeatable(seed, 1) as generator:
        net = Net(proxy, architecture, len(tasks))
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=trial.rate, weight_decay=trial.decay, fused=True
        )
        train, valid = _tensors(proxy.train, tasks), _tensors(proxy.valid, tasks)
        best, best_loss, waited = net.state_dict(), np.inf, 0
        for _ in range(EPOCHS):
            _epoch(net, optimiser, train, generator)
            loss = float(binary_cross_entropy_with_logits(_logits(net, valid), valid[3]))
            waited = 0 if loss < best_loss else waited + 1
            if loss < best_loss:
                best, best_loss = {k: v.clone() for k, v in net.state_dict().items()}, loss
            if waited == PATIENCE:
                break
        net.load_state_dict(best)
        p = [_logits(net, _tensors(rows, tasks)).sigmoid() for rows in (proxy.valid, proxy.test)]
        return p[0].numpy(), p[1].numpy()


def _epoch(
    net: Net,
    optimiser: torch.optim.Optimizer,
    train: tuple[Tensor, Tensor, Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    net.train()
    order = torch.randperm(len(train[0]), generator=generator)
    for rows in torch.split(order, BATCH):
        users, items, x, labels = (column[rows] for column in train)
        optimiser.zero_grad()
        loss: Tensor = binary_cross_entropy_with_logits(net(users, items, x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _logits(net: Net, rows: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    net.eval()
    with torch.no_grad():
        logits: Tensor = net(*rows[:3])
    return logits


def _tensors(rows: Rows, tasks: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    columns = (rows.users, rows.items, rows.x, rows.labels[:, tasks])
    users, items, x, labels = (torch.from_numpy(np.ascontiguousarray(c)) for c in columns)
    return users, items, x, labels


def _trees(proxy: Proxy, task: int, trial: Trial, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain gradient-boosted trees on the features, without ids."""
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
    wanted = [np.ascontiguousarray(rows.labels[:, task]) for rows in (proxy.train, proxy.valid)]
    train = lightgbm.Dataset(proxy.train.x, wanted[0])
    valid = lightgbm.Dataset(proxy.valid.x, wanted[1], reference=train)
    stop = lightgbm.early_stopping(20, verbose=False)
    trees = lightgbm.train(settings, train, TREES, valid_sets=[valid], callbacks=[stop])
    valid_p, test_p = (np.asarray(trees.predict(rows.x)) for rows in (proxy.valid, proxy.test))
    return valid_p[:, None], test_p[:, None]
