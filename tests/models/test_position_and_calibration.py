"""Laws of the position bias and of calibration on later slates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.ranking.ple.calibrate import calibrate, held_out, reliability_by_task
from models.ranking.ple.config import RankerTraining
from models.ranking.ple.data import impression_examples
from models.ranking.ple.inputs import RANKER_TASKS
from models.ranking.ple.network import SLOTS, Ranker, SlotBias
from models.ranking.ple.recipe import RankerRecipe, ranker_size
from models.ranking.ple.tensors import RankerBatch, build_batch, build_vocabulary, genres_by_row
from models.ranking.ple.train import (
    init_standardisation,
    init_task_biases,
    seeded_torch,
    train_ranker,
)
from models.recipe import TrainingLog
from models.training.calibration import MIN_OUTCOMES, Platt, fit_platt
from streams.progress import no_progress

LEARN = RankerTraining(epochs=6, groups=64, user_dropout=1.0)


@pytest.fixture(scope="module")
def slates(small_log: TrainingLog) -> RankerBatch:
    examples = impression_examples(small_log, count=2_000)
    return build_batch(small_log, examples, build_vocabulary(small_log))


def untrained(log: TrainingLog) -> Ranker:
    vocabulary = build_vocabulary(log)
    return Ranker(ranker_size(vocabulary, 16), genres_by_row(log, vocabulary))


def trained_on(log: TrainingLog, batch: RankerBatch) -> tuple[Ranker, SlotBias]:
    with seeded_torch(0, 1) as generator:
        network = untrained(log)
        init_standardisation(network, [batch])
        init_task_biases(network, [batch])
        return network, train_ranker(network, [batch], LEARN, generator, no_progress)


def shown_low(batch: RankerBatch) -> tuple[RankerBatch, torch.Tensor]:
    """Even items are shown low four times of five; all are liked equally, seen less often below."""
    rng = np.random.default_rng(5)
    even = (batch.item % 2 == 0).numpy()
    low = rng.random(even.shape) < np.where(even, 0.8, 0.2)
    slot = np.where(low, 5, 0)
    played = rng.random(even.shape) < 0.5 * np.where(low, 0.3, 1.0)
    labels = np.zeros((*even.shape, len(RANKER_TASKS)), np.float32)
    labels[..., 0] = played & batch.real.numpy()
    wrong = replace(batch, slot=torch.from_numpy(slot), labels=torch.from_numpy(labels))
    return wrong, torch.from_numpy(even) & batch.real


def test_an_item_is_not_penalised_for_its_slot(small_log: TrainingLog, slates: RankerBatch) -> None:
    batch, even = shown_low(slates)
    blind = replace(batch, slot=torch.zeros_like(batch.slot))
    gap = {}
    for name, seen in (("with", batch), ("without", blind)):
        network, slots = trained_on(small_log, seen)
        with torch.no_grad():
            play = network(*batch.inputs())[0][..., 0]
        gap[name] = float(play[batch.real & ~even].mean() - play[even].mean())
        if name == "with":
            assert slots.odds()[5, 0] == pytest.approx(0.15 / 0.85, rel=0.5)
    assert abs(gap["with"]) < 0.5 * abs(gap["without"]), gap


def test_the_first_slot_has_no_bias() -> None:
    slots = SlotBias(3)
    torch.nn.init.ones_(slots.biases.weight[1:])
    slot = torch.tensor([[0, 1, SLOTS + 50]])
    assert slots.tasks(slot)[0, 0].tolist() == [0, 0, 0]
    assert slots.tasks(slot)[0, 2].tolist() == [1, 1, 1]
    assert slots.group(slot).tolist() == [[0, 1, 1]]


def test_platt_undoes_a_scaling_and_does_not_scale_the_offset() -> None:
    rng = np.random.default_rng(0)
    logit, offset = rng.normal(-2, 1, 40_000), rng.choice([0.0, -1.0], 40_000)
    happened = rng.random(40_000) < 1 / (1 + np.exp(-(logit + offset)))
    found = fit_platt(2 * logit + 1, happened, offset)
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.shift == pytest.approx(-0.5, abs=0.06)


def test_too_few_actions_leave_a_task_unscaled() -> None:
    happened = np.zeros(5_000, bool)
    happened[: MIN_OUTCOMES - 1] = True
    assert fit_platt(np.linspace(-3, 3, 5_000), happened) == Platt(1.0, 0.0)


def test_calibration_lowers_the_error_and_keeps_the_order(
    small_log: TrainingLog, slates: RankerBatch
) -> None:
    network, slots = trained_on(small_log, slates)
    with torch.no_grad():
        network.towers[0].weight.mul_(2.0)  # type: ignore[operator]
        network.towers[0].bias.add_(1.0)  # type: ignore[operator]
        before = network(*slates.inputs())[0][..., 0][slates.real]
        done = calibrate(network, slates, slots)
        after = network(*slates.inputs())[0][..., 0][slates.real]
    assert torch.equal(before.argsort(stable=True), after.argsort(stable=True)) or (
        torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.9999
    )
    now, raw = (
        reliability_by_task(network, slates, slots)[0],
        reliability_by_task(network, slates, slots, done)[0],
    )
    assert now.ece < 0.03 < raw.ece
    assert done[4] == Platt(), "no order, so no scaling"


def test_calibration_slates_are_later_than_training_slates(small_log: TrainingLog) -> None:
    slates = impression_examples(small_log, count=2_000)
    learn, held = held_out(slates)
    assert learn.time_ms.max() < held.time_ms.min()
    assert len(learn) + len(held) == len(slates)
    few, none = held_out(slates.newest(20))
    assert (len(few), len(none)) == (20, 0)


def test_evaluation_reports_the_reliability_of_each_task(
    small_log: TrainingLog, before_slates: TrainingLog, quick_recipe: RankerRecipe
) -> None:
    notes = quick_recipe.evaluate(small_log, seed=0, progress=no_progress).notes
    assert [note.split(":")[0] for note in notes] == list(RANKER_TASKS)
    assert "ECE" in notes[0]
    assert "uncalibrated" in notes[0]
    without = quick_recipe.evaluate(before_slates, seed=0, progress=no_progress).notes
    assert without[0].startswith("no slates")
