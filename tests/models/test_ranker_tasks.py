"""Declared signals are tasks of the ranker; a bundle keeps the tasks that it was trained with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.alignment.ranker import RankerUpdate
from models.ranking.ple.config import RankerConfig, RankerTraining
from models.ranking.ple.data import impression_examples, unlogged_interactions
from models.ranking.ple.export import FUSION_FILE, read_network
from models.ranking.ple.inputs import SIGNATURE
from models.ranking.ple.recipe import RankerRecipe, canary_request
from models.ranking.ple.runtime import RankerRuntime
from models.ranking.tasks import SHIPPED_TASKS, TASKS_FILE, RankerTasks, task_names, tasks_in_force
from models.recipe import TrainingLog
from models.release.bundle import signature_mismatch
from models.release.in_process import InProcessClient
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.retrieval.factorisation.data import interactions
from models.signature import Signature, TensorSpec
from models.training.actions import opening
from streams.contract.declaration import Contract, declared
from streams.contract.signals import SHIPPED, Signal, Signals
from streams.progress import no_progress

RATING = Signal("rating", 64, "engagement", ("value",), 3_600_000)
PURCHASE = Signal("purchase", 65, "conversion", (), 3_600_000)
RETURNED = Signal("goods_returned", 66, "dislike", (), 3_600_000)
VIEW = Signal("view", 67, "engagement", (), 3_600_000)
IN_FORCE = Contract(signals=Signals((RATING, PURCHASE, RETURNED)))
SEVEN = (*SHIPPED_TASKS.names, "rating", "purchase")
QUICK = RankerConfig(interactions=300, slates=300, training=RankerTraining(epochs=1))
FIVE = len(SHIPPED_TASKS)
BEFORE = Signature(
    SIGNATURE.inputs,
    (
        TensorSpec("p", "FP32", (-1, FIVE)),
        *(TensorSpec(name, "FP32", (FIVE,)) for name in ("weights", "alpha", "rates")),
        TensorSpec("score", "FP32", (-1,)),
    ),
)
"""The outputs that bundles were sealed with before tasks were declared."""


def _with_signals(log: TrainingLog) -> TrainingLog:
    """Every play is followed by a rating, high for genre 0, and there by a purchase."""
    number = pl.col("video_id").str.slice(1).cast(pl.Int64)
    liked = number % 6 == 0
    played = log.events.filter(kind="play")
    rated = played.with_columns(
        kind=pl.lit("rating"),
        value=pl.when(liked).then(5.0).otherwise(1.0),
        event_time_ms=pl.col("event_time_ms") + 1,
        event_id=pl.col("event_id") + ":rating",
    )
    bought = rated.filter(liked).with_columns(
        kind=pl.lit("purchase"), event_id=pl.col("event_id") + ":purchase"
    )
    events = pl.concat([log.events, rated, bought.with_columns(value=None)], how="diagonal")
    feedback = log.feedback.with_columns(
        rating=pl.col("play"), purchase=pl.col("play") & liked, goods_returned=pl.lit(False)
    )
    return replace(log, events=events.sort("event_time_ms", "event_id"), feedback=feedback)


@pytest.fixture(scope="module")
def shop_log(small_log: TrainingLog) -> TrainingLog:
    return _with_signals(small_log)


@pytest.fixture(scope="module")
def bundle(shop_log: TrainingLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven-tasks")
    with declared(IN_FORCE):
        RankerRecipe(QUICK).train(shop_log, folder, seed=0, progress=no_progress)
    return folder


@pytest.fixture
def signals() -> Iterator[None]:
    with declared(IN_FORCE):
        yield


def test_shipped_tasks_have_the_contracts_numbers() -> None:
    number = {signal.name: signal.number for signal in SHIPPED}
    assert all(number[task.name] == task.number for task in SHIPPED_TASKS.tasks)
    assert tasks_in_force() is SHIPPED_TASKS


@pytest.mark.usefixtures("signals")
def test_declared_engagements_and_conversions_are_tasks_and_dislikes_are_not() -> None:
    tasks = tasks_in_force()
    assert tasks.names == SEVEN
    assert tasks.tasks[:FIVE] == SHIPPED_TASKS.tasks
    like, order = SHIPPED_TASKS.tasks[2], SHIPPED_TASKS.tasks[4]
    rating, purchase = tasks.tasks[FIVE:]
    assert (rating.gain, rating.start, rating.valued) == (like.gain, like.start, True)
    assert (purchase.gain, purchase.start, purchase.valued) == (order.gain, order.start, False)


@pytest.mark.usefixtures("signals")
def test_a_value_below_what_the_user_usually_states_is_not_done(shop_log: TrainingLog) -> None:
    tasks = tasks_in_force()
    examples = impression_examples(shop_log, count=10_000, tasks=tasks)
    played, rated = examples.labels[..., 0], examples.labels[..., SEVEN.index("rating")]
    liked = examples.real & (examples.item % 6 == 0)
    assert (rated == (played & liked)).all()
    assert 0 < rated.sum() < played.sum()
    own = unlogged_interactions(shop_log, tasks)
    assert set(own.filter("rating")["item"] % 6) == {0}


@pytest.mark.usefixtures("signals")
def test_likings_follow_roles_and_values() -> None:
    rows = [
        ("u1", "v1", "rating", 1, 5.0), ("u1", "v2", "rating", 2, 1.0),
        ("u1", "v3", "rating", 3, 3.0), ("u1", "v4", "purchase", 4, None),
        ("u1", "v5", "purchase", 5, None), ("u1", "v5", "goods_returned", 6, None),
        ("u1", "v2", "play", 7, None), ("u1", "v1", "rating", 8, 1.0),
    ]  # fmt: skip
    columns = ("user_id", "video_id", "kind", "event_time_ms", "value")
    types = (pl.String, pl.String, pl.String, pl.Int64, pl.Float64)
    schema = dict(zip(columns, types, strict=True))
    events = pl.DataFrame(rows, schema=schema, orient="row")
    events = events.with_columns(dwell_ms=pl.lit(None, pl.Int32))
    items = pl.DataFrame({"video_id": [f"v{n}" for n in range(6)], "duration_ms": [0] * 6})
    pairs = interactions(TrainingLog(events, items, pl.DataFrame(), 10))
    liking = dict(zip((pairs.item_ids[row] for row in pairs.item), pairs.liking, strict=True))
    assert liking["v4"] == 1.0
    assert liking["v5"] == 0.0, "a return decides over the purchase"
    assert liking["v1"] == liking["v2"] < 0.5 < liking["v3"], "the last value decides"
    assert pairs.played.all()


def test_what_opens_items_leads_where_nothing_is_played(shop_log: TrainingLog) -> None:
    shop = replace(
        shop_log,
        events=shop_log.events.with_columns(
            kind=pl.col("kind").replace({"play": "view", "like": "order"})
        ),
    )
    with declared(Contract(signals=Signals((VIEW, PURCHASE)))):
        assert opening(shop) == "view"
        assert opening(shop_log) == "play"
        tasks, pairs = tasks_in_force(opening(shop)), interactions(shop)
    assert (tasks.names[tasks.base], tasks.start_weights[tasks.base]) == ("view", 0.6)
    viewed = pairs.actions.sum(axis=1) == 0
    assert viewed.any()
    assert (pairs.liking[viewed] == 0).all()
    assert (pairs.liking[pairs.actions[:, pairs.action_names.index("order")]] == 1).all()


def test_the_answer_states_its_tasks_by_number(bundle: Path) -> None:
    answer = RankerRuntime(bundle).infer(canary_request(4))
    assert answer["tasks"].tolist() == [2, 3, 4, 6, 11, 64, 65]
    assert answer["p"].shape == (4, 7)
    assert answer["weights"].shape == answer["alpha"].shape == answer["rates"].shape == (7,)
    assert list(json.loads((bundle / FUSION_FILE).read_text())["rates"]) == list(SEVEN)
    with declared(IN_FORCE):
        assert task_names(answer["tasks"]) == SEVEN
    removed = Signals((PURCHASE,), (RATING,))
    with declared(Contract(signals=removed)):
        assert task_names(answer["tasks"]) == SEVEN
    assert task_names(answer["tasks"])[FIVE:] == ("signal_64", "signal_65")


def test_the_update_of_a_release_keeps_its_tasks_after_a_declaration_is_removed(
    bundle: Path, shop_log: TrainingLog, tmp_path: Path
) -> None:
    quick = RankerUpdate(slates=400, training=RankerTraining(epochs=1))
    removed = Contract(signals=Signals((RATING,), (PURCHASE,)))
    with declared(removed):
        assert tasks_in_force().names == (*SHIPPED_TASKS.names, "rating")
        quick.challenge(bundle, shop_log, tmp_path, seed=0, progress=no_progress)
    network, _ = read_network(tmp_path)
    assert network.tasks == RankerTasks.read(bundle)
    assert RankerRuntime(tmp_path).infer(canary_request(2))["tasks"].tolist()[FIVE:] == [64, 65]


def test_a_bundle_of_before_is_served_with_the_shipped_tasks(
    trained: Path, bundle: Path, tmp_path: Path
) -> None:
    store, repository = ReleaseStore(tmp_path / "releases"), ModelRepository(tmp_path / "served")
    runtime = "models.ranking.ple.runtime:RankerRuntime"
    for folder, signature in ((trained, BEFORE), (bundle, SIGNATURE), (trained, BEFORE)):
        staging = store.staging("ranker")
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        if signature is BEFORE:
            (staging / TASKS_FILE).unlink()
        sealed = store.seal("ranker", staging, runtime=runtime, signature=signature, created_ms=1)
        assert signature_mismatch(sealed) == ""
        repository.add(sealed)
    config = (repository.folder / "ranker" / "config.pbtxt").read_text()
    assert '"tasks"' in config, "all versions share it, so it holds every version's outputs"
    client = InProcessClient(repository.folder)
    client.load("ranker")
    with declared(IN_FORCE):
        for version, names in ((1, SHIPPED_TASKS.names), (2, SEVEN), (3, SHIPPED_TASKS.names)):
            answer = client.infer("ranker", canary_request(3), version=version)
            assert task_names(answer["tasks"]) == names
            assert answer["p"].shape == (3, len(names))
    assert task_names(None) == SHIPPED_TASKS.names


def test_other_outputs_than_the_shipped_ones_are_refused_by_name() -> None:
    outputs = tuple(spec for spec in BEFORE.outputs if spec.name != "rates")
    assert SIGNATURE.unmet_by(replace(BEFORE, outputs=outputs), ("tasks",)) == ("rates",)
    integers = (*outputs, TensorSpec("rates", "INT64", (FIVE,)))
    assert SIGNATURE.unmet_by(replace(BEFORE, outputs=integers), ("tasks",)) == ("rates",)
    assert SIGNATURE.unmet_by(BEFORE) == ("tasks",)
    assert SIGNATURE.unmet_by(BEFORE, ("tasks",)) == ()
    assert np.array_equal(SHIPPED_TASKS.numbers, [2, 3, 4, 6, 11])
