"""Laws of the served ranker, on a real Triton: offline and served agree, bad input fails alone.

Offline is the training path: point-in-time features of all requests at once, padded, in torch.
Served is the serving path: one assembly per request, gRPC, Triton, ONNX Runtime.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.services.triton import Triton
from features.store import Status
from models.ids import id_hash
from models.ranking.ple.data import RankerExamples
from models.ranking.ple.export import read_network
from models.ranking.ple.inputs import RANKER_TASKS, assemble_request
from models.ranking.ple.recipe import canary_request, served_scores
from models.ranking.ple.tensors import build_batch
from models.recipe import TrainingLog
from models.release.in_process import InProcessClient
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.signature import BadInput
from models.training.datasets import catalogue_items, features_at
from serving.clients.triton import TritonClient

REQUESTS, MOST = 200, 60


@pytest.fixture(scope="module")
def bundle_of(trained: Path, tmp_path_factory: pytest.TempPathFactory, reseal: Any) -> Any:
    store = ReleaseStore(tmp_path_factory.mktemp("served"))
    return reseal(store, trained)


@pytest.fixture(scope="module", params=["triton", "in_process"])
def client(request: pytest.FixtureRequest, bundle_of: Any, tmp_path_factory: Any) -> Iterator[Any]:
    """The same bundle behind both hosts of the one runtime class."""
    if request.param == "in_process":
        folder = tmp_path_factory.mktemp("repository")
        ModelRepository(folder).add(bundle_of)
        inside = InProcessClient(folder)
        inside.load("ranker")
        yield inside
        return
    server: Triton = request.getfixturevalue("triton_server")
    ModelRepository(server.repository).add(bundle_of)
    outside = TritonClient(server.grpc_address)
    outside.load("ranker")
    yield outside
    outside.close()


def ask(client: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    answer: dict[str, np.ndarray] = client.infer("ranker", inputs, timeout_s=30.0)
    return answer


def stored_requests(log: TrainingLog) -> RankerExamples:
    """200 requests at times of the log, with 1 to 60 candidates, of known and unknown users."""
    rng = np.random.default_rng(4)
    users = rng.choice(log.events["user_id"].unique().sort().to_numpy(), REQUESTS).astype(object)
    users[::20] = [f"stranger-{n}" for n in range(len(users[::20]))]
    times = rng.integers(log.events["event_time_ms"].min(), log.until_ms, REQUESTS)
    item = np.full((REQUESTS, MOST), -1, np.int64)
    for row in range(REQUESTS):
        wide = int(rng.integers(1, MOST + 1))
        item[row, :wide] = rng.integers(0, log.items.height, wide)  # duplicates too
    return RankerExamples(
        users=users,
        time_ms=times,
        item=item,
        labels=np.zeros((*item.shape, len(RANKER_TASKS)), bool),
        known=np.ones(len(RANKER_TASKS), bool),
        slot=np.zeros(item.shape, np.int64),
        propensity=np.ones(item.shape, np.float32),
        release=np.full(REQUESTS, "", object),
        weights=np.full((REQUESTS, len(RANKER_TASKS)), np.nan, np.float32),
        log_density=np.full(REQUESTS, np.nan, np.float32),
        ranked=np.ones(REQUESTS, bool),
    )


def test_offline_and_served_scores_agree_on_stored_requests(
    client: Any, trained: Path, small_log: TrainingLog
) -> None:
    asked, (network, vocabulary) = stored_requests(small_log), read_network(trained)
    offline = served_scores(network, build_batch(small_log, asked, vocabulary))
    items = catalogue_items(small_log.items)
    author_of = {item.video_id: item.author_id or "" for item in items}
    widths, known_authors = set(), 0
    for row in range(REQUESTS):
        chosen = asked.item[row][asked.real[row]]
        now = asked.time_ms[row : row + 1]
        user = features_at(small_log, "user", [str(asked.users[row])], now)
        about, at = [items[n] for n in chosen], np.repeat(now, len(chosen))
        videos = features_at(small_log, "video", [item.video_id for item in about], at)
        authors = features_at(small_log, "author", [item.author_id or "" for item in about], at)
        known_authors += int((authors.status == Status.PRESENT).sum())
        served = ask(client, assemble_request(user, videos, authors, about, author_of, int(now[0])))
        np.testing.assert_allclose(served["score"], offline[row, : len(chosen)], atol=1e-5, rtol=0)
        widths.add(len(chosen))
    assert len(widths) > 30, "candidate counts are ragged"
    assert known_authors > 1_000, "authors have features"


def request(candidates: int, seed: int = 0) -> dict[str, np.ndarray]:
    inputs = canary_request(candidates)
    rng = np.random.default_rng(seed)
    inputs["user_hash"] = np.array([id_hash(f"u{seed}")])
    inputs["video_hash"] = np.array(
        [id_hash(f"v{n}") for n in rng.integers(0, 90, candidates)], np.int64
    )
    return inputs


def test_a_bad_request_fails_alone_among_good_ones(client: Any) -> None:
    """Sent at once, so that some share a batch."""
    broken = request(5) | {"video_x": np.full_like(request(5)["video_x"], np.nan)}
    uneven = request(5) | {"author_hash": np.zeros(4, np.int64)}
    good = [request(1 + n, n) for n in range(24)]
    alone = [ask(client, each)["score"] for each in good]
    mixed = [each for n, one in enumerate(good) for each in ((one, broken, uneven)[: 1 + n % 3])]

    def outcome(inputs: dict[str, np.ndarray]) -> Any:
        try:
            return ask(client, inputs)["score"]
        except BadInput as error:
            return error

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(outcome, mixed))
    for inputs, answer in zip(mixed, found, strict=True):
        if inputs is broken:
            assert isinstance(answer, BadInput)
            assert "video_x" in str(answer)
        elif inputs is uneven:
            assert isinstance(answer, BadInput)
            assert "author_hash" in str(answer)
    answers = [a for i, a in zip(mixed, found, strict=True) if i is not broken and i is not uneven]
    for one, again in zip(alone, answers, strict=True):
        np.testing.assert_allclose(again, one, atol=1e-6)


def test_a_missing_tensor_is_refused_by_name_and_the_next_request_is_answered(
    client: Any,
) -> None:
    few = request(3)
    del few["genres"]
    with pytest.raises(BadInput, match="genres"):
        ask(client, few)
    assert len(ask(client, request(3))["score"]) == 3


@pytest.mark.parametrize("candidates", [0, 1, 5_000])
def test_any_number_of_candidates_is_answered(client: Any, candidates: int) -> None:
    served = ask(client, request(candidates))
    assert served["p"].shape == (candidates, len(RANKER_TASKS))
    assert np.isfinite(served["score"]).all()
    assert served["weights"].sum() == pytest.approx(1, abs=1e-5)


def test_duplicates_and_unknown_users_are_answered_alike(client: Any) -> None:
    inputs = request(2) | {"user_hash": np.array([id_hash(f"never-{uuid.uuid4().hex}")])}
    for name in ("video_hash", "author_hash", "genres", "video_x"):
        inputs[name][1] = inputs[name][0]
    served = ask(client, inputs)
    assert served["score"][0] == pytest.approx(served["score"][1], abs=1e-6)
    assert (served["weights"] >= 0).all()


def test_a_dead_or_frozen_ranker_is_detected_reloaded_and_answers_rightly(
    assert_heals: Any, trained: Path
) -> None:
    assert_heals("ranker", trained, canary_request())
