"""Fitting of the multi-task models: early stopping, hidden ids, calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.multitask.datasets import Dataset
from benchmarks.multitask.fitting import Net, Trial, _calibrated_loss, fit_predict
from benchmarks.multitask.world_dataset import world
from models.training.calibration import reliability

TRIAL = Trial(3e-3, 1.0, 15, 0.05)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return world(None, quick=True)


def test_over_confidence_alone_is_no_reason_to_stop() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(4_000, 2, generator=generator)
    labels = (torch.rand(4_000, 2, generator=generator) < truth.sigmoid()).float()
    calm = _calibrated_loss(truth, labels)
    assert _calibrated_loss(5 * truth - 1, labels) == pytest.approx(calm, rel=1e-3)
    noise = torch.randn(4_000, 2, generator=generator)
    assert calm < 0.95 < _calibrated_loss(noise, labels) <= 1.001
    assert calm < _calibrated_loss(truth + noise, labels), "a worse order is a greater loss"


@pytest.mark.parametrize(("share", "sees"), [(0.3, True), (1.0, False)])
def test_hidden_ids_are_hidden_when_predicting_too(
    dataset: Dataset, share: float, sees: bool
) -> None:
    net = Net(dataset, "ple", 5, share).eval()
    users, items = torch.arange(6), torch.arange(6)
    x = torch.from_numpy(dataset.train.x[:6])
    with torch.no_grad():
        unmet = net(users, items, x)
        net.user.weight.normal_(generator=torch.Generator().manual_seed(1))
        assert torch.equal(unmet, net(users, items, x)) is not sees


@pytest.mark.parametrize("model", ["ple", "lightgbm"])
def test_probabilities_are_calibrated_on_validation(dataset: Dataset, model: str) -> None:
    small = replace(dataset, tasks=dataset.tasks[:1], **_first_task(dataset))
    valid, test = fit_predict(small, model, TRIAL, seed=1)
    assert valid.shape == (len(dataset.valid), 1)
    assert test.shape == (len(dataset.test), 1)
    assert valid.mean() == pytest.approx(small.valid.labels.mean(), abs=0.01)
    assert reliability(valid[:, 0], small.valid.labels[:, 0] > 0).ece < 0.03
    assert np.array_equal(test, fit_predict(small, model, TRIAL, seed=1)[1])


def _first_task(dataset: Dataset) -> dict[str, object]:
    parts = {"train": dataset.train, "valid": dataset.valid, "test": dataset.test}
    return {name: replace(rows, labels=rows.labels[:, :1]) for name, rows in parts.items()}
