"""Laws of the served fusion policy: on the simplex, static where nothing told, taught by feedback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch

from models.alignment.ranker import RankerUpdate
from models.ranking.grade.dirichlet import draw
from models.ranking.grade.served_fusion import (
    FusionTraining,
    learn_fusion,
    order_value,
    slates_of,
    with_served,
)
from models.ranking.ple.data import Examples, impression_examples
from models.ranking.ple.export import example_inputs, read_network
from models.ranking.ple.inputs import TASKS, USER_FEATURES
from models.ranking.ple.network import KNOWN, Ranker
from models.ranking.ple.recipe import RankerRecipe, canary, scores_of
from models.ranking.ple.runtime import ONNX_FILE, RankerRuntime
from models.ranking.ple.tensors import Batch, batch_of
from models.ranking.ple.train import START, awaken, liking_loss
from models.recipe import TrainingLog
from models.release.promotion import quiet

ORDER, PLAY = TASKS.index("order"), TASKS.index("play")
RATE = USER_FEATURES.index("order_per_play")


@pytest.fixture(scope="module")
def taught(small_log: TrainingLog, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The challenger of one update: its policy has learned."""
    folder = tmp_path_factory.mktemp("taught")
    RankerUpdate().challenge(trained, small_log, folder, seed=0, progress=quiet)
    return folder


def graph(bundle: Path, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """What the graph itself gives, without the runtime's refusals."""
    session = onnxruntime.InferenceSession(str(bundle / ONNX_FILE))
    names = [each.name for each in session.get_inputs()]
    every = dict(
        zip(
            ["user", "user_x", "history", "history_kind", "video", "author", "genres", "video_x"],
            (tensor.numpy() for tensor in example_inputs(4)),
            strict=True,
        )
    )
    given = {name: value for name, value in (every | changes).items() if name in names}
    told = [each.name for each in session.get_outputs()]
    return dict(zip(told, session.run(None, given), strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_the_graph_gives_weights_on_the_simplex_whatever_comes_in(
    taught: Path, value: float
) -> None:
    odd = {name: np.full_like(x, value) for name, x in graph_floats().items()}
    found = graph(taught, **odd)
    assert (found["weights"] >= 0).all()
    assert found["weights"].sum() == pytest.approx(1, abs=1e-5)
    drawn = draw(found["alpha"], 1.0, 5)
    assert drawn is not None
    assert drawn.weights.sum() == pytest.approx(1, abs=1e-6)
    assert np.isfinite(found["score"]).all()


def graph_floats() -> dict[str, np.ndarray]:
    tensors = example_inputs(4)
    return {
        "user_x": tensors[1].numpy(),
        "genres": tensors[6].numpy(),
        "video_x": tensors[7].numpy(),
    }


def test_nobody_known_gets_the_declared_start(taught: Path) -> None:
    network, _ = read_network(taught)
    assert USER_FEATURES[KNOWN] == "known"
    assert bool(network.personal)
    nobody = graph(taught)["weights"]
    np.testing.assert_allclose(nobody, network.start.numpy(), atol=1e-6)
    somebody = example_inputs(4)[1].numpy().copy()
    somebody[KNOWN] = 1
    assert not np.allclose(graph(taught, user_x=somebody)["weights"], nobody, atol=1e-3)


def test_the_weights_served_are_the_mean_of_what_is_drawn_from(taught: Path) -> None:
    """For who has a policy and who has not."""
    for known in (0.0, 1.0):
        user_x = example_inputs(4)[1].numpy().copy()
        user_x[KNOWN] = known
        found = graph(taught, user_x=user_x)
        mean = found["alpha"] / found["alpha"].sum()
        np.testing.assert_allclose(mean, found["weights"], atol=1e-6)
        drawn = [draw(found["alpha"], 1.0, seed).weights for seed in range(2_000)]  # type: ignore[union-attr]
        np.testing.assert_allclose(np.mean(drawn, 0), found["weights"], atol=0.01)


def test_a_history_without_slates_leaves_the_declared_start(
    before_slates: TrainingLog, quick_recipe: RankerRecipe, trained: Path, tmp_path: Path
) -> None:
    """For every seed: no task takes all. Tasks that the log cannot show keep a little."""
    quick_recipe.train(before_slates, tmp_path, seed=1, progress=quiet)
    shown = [task in before_slates.events["kind"].unique().to_list() for task in TASKS]
    expected = np.where(shown, START, 0.02)
    for folder in (trained, tmp_path):
        runtime, inputs = RankerRuntime(folder), canary()
        inputs["user_x"][KNOWN] = 1
        weights = runtime.infer(inputs)["weights"]
        np.testing.assert_allclose(weights, expected / expected.sum(), atol=1e-6)


def test_the_graph_equals_the_network_after_an_update(taught: Path) -> None:
    network, _ = read_network(taught)
    rng = np.random.default_rng(3)
    for seed in range(10):
        user_x = rng.normal(size=len(USER_FEATURES)).astype(np.float32) * seed
        user_x[KNOWN] = 1
        with torch.no_grad():
            own = network.weights(torch.from_numpy(user_x)[None])[0].numpy()
        np.testing.assert_allclose(graph(taught, user_x=user_x)["weights"], own, atol=1e-5)


def test_who_rewards_orders_gets_a_higher_order_weight(
    trained: Path, small_log: TrainingLog
) -> None:
    network, batch, slates = two_kinds_of_people(trained, small_log)
    assert learn_fusion(network, batch, slates, FusionTraining(), seed=0)
    assert_each_kind_has_its_weight(network, batch)


def test_an_update_goes_on_from_the_served_policy(trained: Path, small_log: TrainingLog) -> None:
    """Near it, and not from the start again."""
    network, batch, slates = two_kinds_of_people(trained, small_log)
    learn_fusion(network, batch, slates, FusionTraining(), seed=0)
    served = network.weights(batch.user_x).detach()
    learn_fusion(network, batch, slates, FusionTraining(), seed=1)
    after = network.weights(batch.user_x).detach()
    moved = (after - served).abs().sum(-1).mean()
    assert 0 < moved < (served - network.start).abs().sum(-1).mean()


def with_drawn(log: TrainingLog, rows: dict[str, object]) -> TrainingLog:
    """The log whose first request says that it was ranked by these drawn weights."""
    first = log.feedback.sort("served_at_ms", "request_id")["request_id"][0]
    mine = pl.col("request_id") == first
    told = [
        pl.when(mine).then(pl.lit(value, log.feedback.schema[name])).otherwise(pl.col(name))
        for name, value in rows.items()
    ]
    return replace(log, feedback=log.feedback.with_columns(
        each.alias(name) for each, name in zip(told, rows, strict=True)
    ))  # fmt: skip


WEIGHTS = [0.1, 0.2, 0.3, 0.15, 0.25]


def test_a_slate_knows_the_weights_that_it_was_drawn_with(small_log: TrainingLog) -> None:
    log = with_drawn(small_log, {"weights": WEIGHTS, "log_density": 3.5})
    slates = impression_examples(log, count=10_000)
    np.testing.assert_allclose(slates.weights[0], WEIGHTS, rtol=1e-6)
    assert slates.log_density[0] == 3.5
    assert np.isnan(slates.weights[1:]).all()
    assert np.isnan(slates.log_density[1:]).all()


@pytest.mark.parametrize(
    ("weights", "density"),
    [
        ([0.5, 0.5], 1.0),
        ([0.5] * 5, 1.0),
        ([0.0, 0.25, 0.25, 0.25, 0.25], 1.0),
        ([-0.5, 0.5, 0.5, 0.25, 0.25], 1.0),
        ([float("nan"), 0.25, 0.25, 0.25, 0.25], 1.0),
        (WEIGHTS, None),
        (WEIGHTS, float("inf")),
    ],
)
def test_what_is_no_draw_of_these_tasks_counts_as_none(
    small_log: TrainingLog, weights: list[float], density: float | None
) -> None:
    log = with_drawn(small_log, {"weights": weights, "log_density": density})
    slates = impression_examples(log, count=10_000)
    assert np.isnan(slates.weights).all()
    assert np.isnan(slates.log_density).all()


def test_the_vector_that_was_served_is_the_first_of_its_group_at_its_logged_density(
    trained: Path, small_log: TrainingLog
) -> None:
    network, batch, slates = two_kinds_of_people(trained, small_log)
    slates.weights[::2], slates.log_density[::2] = WEIGHTS, 2.5
    learned = slates_of(network, batch, slates)
    was = learned.log_density.isfinite()
    assert 0 < was.sum() < len(learned)
    generator = torch.Generator().manual_seed(0)
    alpha = network.fusion(learned.observed).detach()
    drawn = network.fusion.draw(alpha, 4, generator)
    before = network.fusion.density(alpha, drawn)
    vectors, densities = with_served(learned, drawn, before)
    torch.testing.assert_close(vectors[was, 0], torch.tensor(WEIGHTS).expand(int(was.sum()), -1))
    assert (densities[was, 0] == 2.5).all()
    for mine, theirs in ((vectors, drawn), (densities, before)):
        torch.testing.assert_close(mine[~was], theirs[~was])
        torch.testing.assert_close(mine[:, 1:], theirs[:, 1:])


def test_a_slate_that_was_drawn_is_scored_by_the_weights_that_drew_it(
    trained: Path, small_log: TrainingLog
) -> None:
    network, batch, slates = two_kinds_of_people(trained, small_log)
    own = scores_of(network, batch)
    np.testing.assert_allclose(scores_of(network, batch, drawn=slates.weights), own)
    slates.weights[3] = WEIGHTS
    logged = scores_of(network, batch, drawn=slates.weights)
    with torch.no_grad():
        ratios = network.ratios(network(*batch.inputs())[0])[3]
    np.testing.assert_allclose(logged[3], ratios @ torch.tensor(WEIGHTS), rtol=1e-5)
    np.testing.assert_allclose(np.delete(logged, 3, 0), np.delete(own, 3, 0))


def test_drawn_slates_teach_the_policy_no_worse(trained: Path, small_log: TrainingLog) -> None:
    """Half the slates were served by vectors of the policy's own, with their density."""
    network, batch, slates = two_kinds_of_people(trained, small_log)
    with torch.no_grad():
        alpha = network.alpha(batch.user_x).numpy()
    for row in range(0, len(slates), 2):
        drawn = draw(alpha[row], 1.0, row)
        assert drawn is not None
        slates.weights[row], slates.log_density[row] = drawn.weights, drawn.log_density
    assert learn_fusion(network, batch, slates, FusionTraining(), seed=0)
    assert_each_kind_has_its_weight(network, batch)


def test_too_few_slates_teach_nothing(trained: Path, small_log: TrainingLog) -> None:
    network, batch, slates = two_kinds_of_people(trained, small_log)
    few = torch.arange(50)
    assert not learn_fusion(
        network, batch.take(few), slates.take(few.numpy()), FusionTraining(), seed=0
    )
    assert not bool(network.personal)


def test_what_did_not_vary_in_training_changes_no_score(trained: Path) -> None:
    """Nothing was shown in a history; a crowd that is shown much must not become noise."""
    network, _ = read_network(trained)
    silent = network.video_std.isinf().numpy()
    assert silent.any()
    inputs = canary(6)
    before = RankerRuntime(trained).infer(inputs)["score"]
    inputs["video_x"] = np.where(silent, 7.0, inputs["video_x"]).astype(np.float32)
    np.testing.assert_array_equal(RankerRuntime(trained).infer(inputs)["score"], before)


def test_a_feature_that_wakes_changes_no_score_before_it_has_learned(
    trained: Path, small_log: TrainingLog
) -> None:
    network, vocabulary = read_network(trained)
    batch = batch_of(small_log, impression_examples(small_log, count=200), vocabulary)
    before, silent = network(*batch.inputs())[2], network.video_std.isinf().sum()
    awaken(network, [batch])
    assert network.video_std.isinf().sum() < silent
    torch.testing.assert_close(network(*batch.inputs())[2], before)


def test_liking_is_judged_among_what_was_played_alone(
    trained: Path, small_log: TrainingLog
) -> None:
    _, vocabulary = read_network(trained)
    batch = batch_of(small_log, impression_examples(small_log, count=50), vocabulary)
    logits = torch.zeros_like(batch.labels) - 1.0
    logits[..., PLAY] = 1.0
    loss = liking_loss(logits, batch)
    other = logits.clone()
    other[batch.labels[..., PLAY] == 0] = 5.0
    torch.testing.assert_close(liking_loss(other, batch), loss)
    liked = replace(batch, labels=batch.labels.clone())
    liked.labels[..., ORDER] = liked.labels[..., PLAY]
    better = logits.clone()
    better[..., ORDER] = 0.5
    assert liking_loss(better, liked) < liking_loss(logits, liked)


def test_the_best_order_is_worth_one_and_an_empty_slate_nothing() -> None:
    worth = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    best = order_value(worth.unsqueeze(1), worth)
    torch.testing.assert_close(best[:, 0], torch.tensor([1.0, 0.0]))
    worst = order_value(-worth.unsqueeze(1), worth)
    assert 0 < worst[0, 0] < 1


def two_kinds_of_people(trained: Path, log: TrainingLog) -> tuple[Ranker, Batch, Examples]:
    """Slates of which half the people only order and half only play, each what P of that
    action says; which of the two they are stands in their order rate so far."""
    network, vocabulary = read_network(trained)
    slates = impression_examples(log, count=10_000)
    batch = batch_of(log, slates, vocabulary)
    awaken(network, [batch])
    buyers = torch.from_numpy(np.array([int(user[1:]) % 2 == 0 for user in slates.users]))
    user_x = batch.user_x.clone()
    user_x[:, RATE] = torch.where(buyers, 0.3, 0.03)
    network.user_mean[RATE], network.user_std[RATE] = 0.165, 0.135
    p = unlike_predictions(network, replace(batch, user_x=user_x))
    first = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).transpose(1, 2)  # [G, C, T]
    labels = torch.zeros_like(batch.labels)
    labels[buyers, :, ORDER] = first[buyers, :, ORDER].float()
    labels[~buyers, :, PLAY] = first[~buyers, :, PLAY].float()
    batch = replace(batch, user_x=user_x, labels=labels)
    return network, batch, replace(slates, labels=labels.numpy().astype(bool))


def assert_each_kind_has_its_weight(network: Ranker, batch: Batch) -> None:
    orders = batch.user_x[:, RATE] > 0.1
    with torch.no_grad():
        weights = network.weights(batch.user_x)
    assert weights[orders, ORDER].mean() > 1.3 * weights[~orders, ORDER].mean()
    assert weights[~orders, PLAY].mean() > 1.3 * weights[orders, PLAY].mean()


def unlike_predictions(network: Ranker, batch: Batch) -> torch.Tensor:
    """Gives `network` predictions where what is played most is not what is ordered most.

    Towers are drawn until it is so: what experts say may lie along one line.
    """
    for seed in range(50):
        spread_the_predictions(network, seed)
        with torch.no_grad():
            logits = network(*batch.inputs())[0]
        if abs(np.corrcoef(logits[batch.real].numpy().T)[PLAY, ORDER]) < 0.5:
            return logits
    raise AssertionError("no draw of the towers tells play from order")


def spread_the_predictions(network: Ranker, seed: int) -> None:
    """Predictions that vary from candidate to candidate, each task in its own way."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tower in network.towers:
            assert isinstance(tower, torch.nn.Linear)
            tower.weight.copy_(2 * torch.randn(tower.weight.shape, generator=generator))
            tower.bias.fill_(-1.0)
        network.rates.fill_(0.25)
        network.start.fill_(0.2)
        network.fusion.begin_at(network.start)
