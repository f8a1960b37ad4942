"""Laws of the served fusion policy: on the simplex, static without feedback, trained by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch

from models.alignment.ranker import RankerUpdate
from models.ranking.grade.config import FusionTraining
from models.ranking.grade.dirichlet import draw_weights
from models.ranking.grade.served_fusion import fusion_slates, learn_fusion, order_value, with_served
from models.ranking.ple.data import RankerExamples, impression_examples
from models.ranking.ple.export import example_inputs, read_network
from models.ranking.ple.features import USER_FEATURES
from models.ranking.ple.inputs import RANKER_TASKS
from models.ranking.ple.network import KNOWN_COLUMN, Ranker
from models.ranking.ple.recipe import RankerRecipe, canary_request, served_scores
from models.ranking.ple.runtime import ONNX_FILE, RankerRuntime
from models.ranking.ple.tensors import RankerBatch, build_batch
from models.ranking.ple.train import action_given_play_loss, init_unfrozen_features
from models.ranking.tasks import SHIPPED_TASKS
from models.recipe import TrainingLog
from streams.progress import no_progress

ORDER, PLAY = RANKER_TASKS.index("order"), RANKER_TASKS.index("play")
RATE = USER_FEATURES.index("order_per_play")


@pytest.fixture(scope="module")
def updated(
    small_log: TrainingLog, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The challenger of one update, with a trained policy."""
    folder = tmp_path_factory.mktemp("updated")
    RankerUpdate().challenge(trained, small_log, folder, seed=0, progress=no_progress)
    return folder


def graph(bundle: Path, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of the ONNX graph itself, without the runtime's input checks."""
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
    outputs = [each.name for each in session.get_outputs()]
    return dict(zip(outputs, session.run(None, given), strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_the_graph_gives_weights_on_the_simplex_whatever_comes_in(
    updated: Path, value: float
) -> None:
    odd = {name: np.full_like(x, value) for name, x in graph_floats().items()}
    found = graph(updated, **odd)
    assert (found["weights"] >= 0).all()
    assert found["weights"].sum() == pytest.approx(1, abs=1e-5)
    drawn = draw_weights(found["alpha"], 1.0, 5)
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


def test_an_unknown_user_gets_the_declared_start(updated: Path) -> None:
    network, _ = read_network(updated)
    assert USER_FEATURES[KNOWN_COLUMN] == "known"
    assert bool(network.personal)
    unknown = graph(updated)["weights"]
    np.testing.assert_allclose(unknown, network.start.numpy(), atol=1e-6)
    known = example_inputs(4)[1].numpy().copy()
    known[KNOWN_COLUMN] = 1
    assert not np.allclose(graph(updated, user_x=known)["weights"], unknown, atol=1e-3)


def test_served_weights_are_the_mean_of_the_draws(updated: Path) -> None:
    """For users with a policy of their own and without."""
    for known in (0.0, 1.0):
        user_x = example_inputs(4)[1].numpy().copy()
        user_x[KNOWN_COLUMN] = known
        found = graph(updated, user_x=user_x)
        mean = found["alpha"] / found["alpha"].sum()
        np.testing.assert_allclose(mean, found["weights"], atol=1e-6)
        drawn = [draw_weights(found["alpha"], 1.0, seed).weights for seed in range(2_000)]  # type: ignore[union-attr]
        np.testing.assert_allclose(np.mean(drawn, 0), found["weights"], atol=0.01)


def test_a_history_without_slates_leaves_the_declared_start(
    before_slates: TrainingLog, quick_recipe: RankerRecipe, trained: Path, tmp_path: Path
) -> None:
    """For every seed. Tasks that the log cannot show keep a small weight."""
    quick_recipe.train(before_slates, tmp_path, seed=1, progress=no_progress)
    shown = [task in before_slates.events["kind"].unique().to_list() for task in RANKER_TASKS]
    expected = np.where(shown, SHIPPED_TASKS.start_weights, 0.02)
    for folder in (trained, tmp_path):
        runtime, inputs = RankerRuntime(folder), canary_request()
        inputs["user_x"][KNOWN_COLUMN] = 1
        weights = runtime.infer(inputs)["weights"]
        np.testing.assert_allclose(weights, expected / expected.sum(), atol=1e-6)


def test_the_graph_equals_the_network_after_an_update(updated: Path) -> None:
    network, _ = read_network(updated)
    rng = np.random.default_rng(3)
    for seed in range(10):
        user_x = rng.normal(size=len(USER_FEATURES)).astype(np.float32) * seed
        user_x[KNOWN_COLUMN] = 1
        with torch.no_grad():
            own = network.weights(torch.from_numpy(user_x)[None])[0].numpy()
        np.testing.assert_allclose(graph(updated, user_x=user_x)["weights"], own, atol=1e-5)


def test_a_user_who_orders_gets_a_higher_order_weight(
    trained: Path, small_log: TrainingLog
) -> None:
    network, batch, slates = two_kinds_of_users(trained, small_log)
    assert learn_fusion(network, batch, slates, FusionTraining(), seed=0)
    assert_each_kind_has_its_own_weights(network, batch)


def test_an_update_continues_from_the_served_policy(trained: Path, small_log: TrainingLog) -> None:
    """It stays nearer to the served policy than to the declared start."""
    network, batch, slates = two_kinds_of_users(trained, small_log)
    learn_fusion(network, batch, slates, FusionTraining(), seed=0)
    served = network.weights(batch.user_x).detach()
    learn_fusion(network, batch, slates, FusionTraining(), seed=1)
    after = network.weights(batch.user_x).detach()
    moved = (after - served).abs().sum(-1).mean()
    assert 0 < moved < (served - network.start).abs().sum(-1).mean()


def with_drawn(log: TrainingLog, rows: dict[str, object]) -> TrainingLog:
    """The log with drawn weights logged for its first request."""
    first = log.feedback.sort("served_at_ms", "request_id")["request_id"][0]
    mine = pl.col("request_id") == first
    columns = [
        pl.when(mine).then(pl.lit(value, log.feedback.schema[name])).otherwise(pl.col(name))
        for name, value in rows.items()
    ]
    named = [each.alias(name) for each, name in zip(columns, rows, strict=True)]
    return replace(log, feedback=log.feedback.with_columns(named))


WEIGHTS = [0.1, 0.2, 0.3, 0.15, 0.25]


def test_a_slate_keeps_the_weights_that_ranked_it(small_log: TrainingLog) -> None:
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
def test_an_invalid_draw_counts_as_none(
    small_log: TrainingLog, weights: list[float], density: float | None
) -> None:
    log = with_drawn(small_log, {"weights": weights, "log_density": density})
    slates = impression_examples(log, count=10_000)
    assert np.isnan(slates.weights).all()
    assert np.isnan(slates.log_density).all()


def test_the_served_vector_is_the_first_of_its_group_at_its_logged_density(
    trained: Path, small_log: TrainingLog
) -> None:
    network, batch, slates = two_kinds_of_users(trained, small_log)
    slates.weights[::2], slates.log_density[::2] = WEIGHTS, 2.5
    learned = fusion_slates(network, batch, slates)
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


def test_a_slate_of_drawn_weights_is_scored_by_those_weights(
    trained: Path, small_log: TrainingLog
) -> None:
    network, batch, slates = two_kinds_of_users(trained, small_log)
    own = served_scores(network, batch)
    np.testing.assert_allclose(served_scores(network, batch, drawn=slates.weights), own)
    slates.weights[3] = WEIGHTS
    logged = served_scores(network, batch, drawn=slates.weights)
    with torch.no_grad():
        ratios = network.ratios(network(*batch.inputs())[0])[3]
    np.testing.assert_allclose(logged[3], ratios @ torch.tensor(WEIGHTS), rtol=1e-5)
    np.testing.assert_allclose(np.delete(logged, 3, 0), np.delete(own, 3, 0))


def test_slates_of_drawn_weights_train_the_policy_too(
    trained: Path, small_log: TrainingLog
) -> None:
    """Half of the slates were ranked by draws of the policy, with their density."""
    network, batch, slates = two_kinds_of_users(trained, small_log)
    with torch.no_grad():
        alpha = network.alpha(batch.user_x).numpy()
    for row in range(0, len(slates), 2):
        drawn = draw_weights(alpha[row], 1.0, row)
        assert drawn is not None
        slates.weights[row], slates.log_density[row] = drawn.weights, drawn.log_density
    assert learn_fusion(network, batch, slates, FusionTraining(), seed=0)
    assert_each_kind_has_its_own_weights(network, batch)


def test_too_few_slates_leave_the_policy_unchanged(trained: Path, small_log: TrainingLog) -> None:
    network, batch, slates = two_kinds_of_users(trained, small_log)
    few = torch.arange(50)
    assert not learn_fusion(
        network, batch.take(few), slates.take(few.numpy()), FusionTraining(), seed=0
    )
    assert not bool(network.personal)


def test_a_feature_that_did_not_vary_in_training_changes_no_score(trained: Path) -> None:
    """Nothing is shown in a replayed history; impressions in serving must not become noise."""
    network, _ = read_network(trained)
    frozen = network.video_std.isinf().numpy()
    assert frozen.any()
    inputs = canary_request(6)
    before = RankerRuntime(trained).infer(inputs)["score"]
    inputs["video_x"] = np.where(frozen, 7.0, inputs["video_x"]).astype(np.float32)
    np.testing.assert_array_equal(RankerRuntime(trained).infer(inputs)["score"], before)


def test_an_unfrozen_feature_changes_no_score_before_training(
    trained: Path, small_log: TrainingLog
) -> None:
    network, vocabulary = read_network(trained)
    batch = build_batch(small_log, impression_examples(small_log, count=200), vocabulary)
    before, frozen = network(*batch.inputs())[2], network.video_std.isinf().sum()
    init_unfrozen_features(network, [batch])
    assert network.video_std.isinf().sum() < frozen
    torch.testing.assert_close(network(*batch.inputs())[2], before)


def test_later_actions_are_trained_on_played_candidates_only(
    trained: Path, small_log: TrainingLog
) -> None:
    _, vocabulary = read_network(trained)
    batch = build_batch(small_log, impression_examples(small_log, count=50), vocabulary)
    logits = torch.zeros_like(batch.labels) - 1.0
    logits[..., PLAY] = 1.0
    loss = action_given_play_loss(logits, batch)
    other = logits.clone()
    other[batch.labels[..., PLAY] == 0] = 5.0
    torch.testing.assert_close(action_given_play_loss(other, batch), loss)
    liked = replace(batch, labels=batch.labels.clone())
    liked.labels[..., ORDER] = liked.labels[..., PLAY]
    better = logits.clone()
    better[..., ORDER] = 0.5
    assert action_given_play_loss(better, liked) < action_given_play_loss(logits, liked)


def test_the_best_order_has_value_one_and_an_empty_slate_zero() -> None:
    worth = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    best = order_value(worth.unsqueeze(1), worth)
    torch.testing.assert_close(best[:, 0], torch.tensor([1.0, 0.0]))
    worst = order_value(-worth.unsqueeze(1), worth)
    assert 0 < worst[0, 0] < 1


def two_kinds_of_users(
    trained: Path, log: TrainingLog
) -> tuple[Ranker, RankerBatch, RankerExamples]:
    """Slates where half of the users only order and half only play, each the candidate with the
    highest P of that action; a user's order rate so far shows which half it is."""
    network, vocabulary = read_network(trained)
    slates = impression_examples(log, count=10_000)
    batch = build_batch(log, slates, vocabulary)
    init_unfrozen_features(network, [batch])
    buyers = torch.from_numpy(np.array([int(user[1:]) % 2 == 0 for user in slates.users]))
    user_x = batch.user_x.clone()
    user_x[:, RATE] = torch.where(buyers, 0.3, 0.03)
    network.user_mean[RATE], network.user_std[RATE] = 0.165, 0.135
    p = distinct_predictions(network, replace(batch, user_x=user_x))
    first = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).transpose(1, 2)  # [G, C, T]
    labels = torch.zeros_like(batch.labels)
    labels[buyers, :, ORDER] = first[buyers, :, ORDER].float()
    labels[~buyers, :, PLAY] = first[~buyers, :, PLAY].float()
    batch = replace(batch, user_x=user_x, labels=labels)
    return network, batch, replace(slates, labels=labels.numpy().astype(bool))


def assert_each_kind_has_its_own_weights(network: Ranker, batch: RankerBatch) -> None:
    orders = batch.user_x[:, RATE] > 0.1
    with torch.no_grad():
        weights = network.weights(batch.user_x)
    assert weights[orders, ORDER].mean() > 1.3 * weights[~orders, ORDER].mean()
    assert weights[~orders, PLAY].mean() > 1.3 * weights[orders, PLAY].mean()


def distinct_predictions(network: Ranker, batch: RankerBatch) -> torch.Tensor:
    """Gives `network` predictions of play and order that are hardly correlated.

    Towers are redrawn until that holds: the experts' outputs may be nearly collinear.
    """
    for seed in range(50):
        spread_the_predictions(network, seed)
        with torch.no_grad():
            logits = network(*batch.inputs())[0]
        if abs(np.corrcoef(logits[batch.real].numpy().T)[PLAY, ORDER]) < 0.5:
            return logits
    raise AssertionError("no draw of the towers separates play from order")


def spread_the_predictions(network: Ranker, seed: int) -> None:
    """Predictions that vary between candidates, independently by task."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tower in network.towers:
            assert isinstance(tower, torch.nn.Linear)
            tower.weight.copy_(2 * torch.randn(tower.weight.shape, generator=generator))
            tower.bias.fill_(-1.0)
        network.rates.fill_(0.25)
        network.start.fill_(0.2)
        network.fusion.set_start_weights(network.start)
