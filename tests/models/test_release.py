"""Laws of releases: sealed is sealed, live is one atomic switch, bad ones never get there.

Run over the in-process client and over a real Triton alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.client import ModelClient, ModelUnavailable
from models.echo import came_back, probe
from models.ranking.ple.export import WEIGHTS_FILE, read_network
from models.ranking.ple.inputs import SIGNATURE
from models.ranking.ple.network import Ranker
from models.ranking.ple.recipe import canary
from models.ranking.ple.runtime import RankerRuntime
from models.recipe import NotEnoughData, TrainingLog
from models.release.bundle import Bundle, Manifest, ReleaseError, ReleaseStore, read_canary
from models.release.in_process import InProcessClient
from models.release.promotion import Promoter, announcement, successor
from models.release.triton_repository import ModelRepository
from models.signature import BadInput, Signature
from models.training.update import Outcome, update, watermark_ms

Reseal = Callable[[ReleaseStore, Path], Bundle]


@dataclass
class Stack:
    """A store, a server and what was announced."""

    store: ReleaseStore
    repository: ModelRepository
    client: ModelClient
    announced: list[str] = field(default_factory=list)

    @property
    def promoter(self) -> Promoter:
        tell = lambda release: self.announced.append(release.release_id)  # noqa: E731
        return Promoter(self.store, self.repository, self.client, tell)

    def go_live(self, version: int, now_ms: int = 1) -> Manifest:
        release = self.store.propose({"ranker": version}, created_ms=now_ms)
        self.promoter.promote(release, now_ms=now_ms)
        return release


@pytest.fixture(params=["in_process", "triton"])
def stack(request: pytest.FixtureRequest, store: ReleaseStore, tmp_path: Path) -> Iterator[Stack]:
    if request.param == "in_process":
        folder = tmp_path / "repository"
        yield Stack(store, ModelRepository(folder), InProcessClient(folder))
        return
    from serving.clients.triton import TritonClient

    server = request.getfixturevalue("triton_server")
    client = TritonClient(server.grpc_address)
    repository = ModelRepository(server.repository)
    repository.keep_only("ranker", ())
    yield Stack(store, repository, client)
    repository.keep_only("ranker", ())
    client.close()


def test_served_equals_in_process(stack: Stack, trained: Path) -> None:
    stack.go_live(1)
    runtime = RankerRuntime(trained)
    for candidates in (0, 1, 3, 500, 5_000):
        inputs = canary(candidates)
        served = stack.client.infer("ranker", inputs, version=1, timeout_s=10)
        for name, tensor in runtime.infer(inputs).items():
            np.testing.assert_allclose(served[name], tensor, atol=1e-5)


def test_one_bad_request_fails_no_other(stack: Stack) -> None:
    stack.go_live(1)
    good, bad = canary(5), canary(5)
    bad["user_x"] = np.full_like(bad["user_x"], np.nan)
    outcomes: list[str] = []

    def ask(inputs: dict[str, np.ndarray]) -> None:
        try:
            stack.client.infer("ranker", inputs, timeout_s=10)
            outcomes.append("answered")
        except BadInput as error:
            outcomes.append("named" if "user_x" in str(error) else str(error))

    threads = [threading.Thread(target=ask, args=(i,)) for i in [good, bad] * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answered"] * 10 + ["named"] * 10


def test_a_swap_fails_no_request(stack: Stack, trained: Path, reseal: Reseal) -> None:
    stack.go_live(1)
    reseal(stack.store, trained)
    stop, failures, answered = threading.Event(), [], []

    def ask() -> None:
        inputs = canary(50)
        while not stop.wait(0.002):
            version = stack.store.current().models["ranker"]  # type: ignore[union-attr]
            try:
                stack.client.infer("ranker", inputs, version=version, timeout_s=10)
                answered.append(version)
            except ModelUnavailable as error:
                failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        stack.go_live(2)
        stack.promoter.rollback(now_ms=2, reason="a test")
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert len(answered) > 0
    assert stack.client.versions("ranker") == (1, 2)


def test_two_releases_stay_loaded_and_the_third_leaves(
    stack: Stack, trained: Path, reseal: Reseal
) -> None:
    for version in (1, 2, 3):
        if version > 1:
            reseal(stack.store, trained)
        stack.go_live(version)
    assert stack.client.versions("ranker") == (2, 3)
    assert stack.announced == ["r0001", "r0002", "r0003"]


def test_a_bundle_that_does_not_load_leaves_the_live_one(
    stack: Stack, trained: Path, reseal: Reseal, tmp_path: Path
) -> None:
    stack.go_live(1)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in trained.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "ranker.onnx").write_bytes(b"not a graph")
    bundle = reseal(stack.store, broken)
    with pytest.raises(ReleaseError, match="stays down"):
        stack.go_live(bundle.version)
    assert stack.store.current().release_id == "r0001"  # type: ignore[union-attr]
    assert stack.client.infer("ranker", canary(2), version=1)["score"].shape == (2,)
    assert stack.announced == ["r0001"]
    assert stack.repository.versions("ranker") == (1,)


def test_a_rollback_quarantines_what_the_bad_release_gathered(
    stack: Stack, trained: Path, reseal: Reseal
) -> None:
    stack.go_live(1, now_ms=10)
    reseal(stack.store, trained)
    stack.go_live(2, now_ms=20)
    back = stack.promoter.rollback(now_ms=35, reason="orders fell")
    assert back.release_id == "r0001"
    assert stack.store.current() == back
    (kept,) = stack.store.quarantined()
    assert (kept.release_id, kept.since_ms, kept.until_ms) == ("r0002", 20, 35)
    with pytest.raises(ReleaseError, match="no earlier release"):
        stack.promoter.rollback(now_ms=40, reason="again")


def test_a_release_of_another_signature_is_left_out_by_name_and_training_brings_one_back(
    stack: Stack, trained: Path, reseal: Any, small_log: TrainingLog
) -> None:
    """As after an upgrade: it is live by the book, and its folder lies in the repository."""
    fewer = [replace(s, shape=(-1, 9)) if s.name == "video_x" else s for s in SIGNATURE.inputs]
    old = reseal(stack.store, trained, Signature(tuple(fewer), SIGNATURE.outputs))
    release = stack.store.propose({"ranker": old.version}, created_ms=1)
    stack.store.set_current(release.release_id, at_ms=1)
    stack.repository.add(old)
    says = r"ranker version 2 .*\(video_x differ\): `tidemill models train ranker`"
    with pytest.raises(ModelUnavailable):
        stack.client.load("ranker")
    stack.promoter.restore()
    assert stack.repository.versions("ranker") == ()
    with pytest.raises(ReleaseError, match=says):
        run_update(stack, small_log)
    reseal(stack.store, trained)
    stack.go_live(3)
    assert stack.client.infer("ranker", canary(2), version=3)["score"].shape == (2,)
    with pytest.raises(ReleaseError, match=says):
        stack.promoter.rollback(now_ms=2, reason="a test")
    assert stack.store.current().models == {"ranker": 3}  # type: ignore[union-attr]
    assert stack.client.versions("ranker") == (3,)


def test_a_network_of_other_features_is_not_taught(trained: Path, tmp_path: Path) -> None:
    network, vocabulary = read_network(trained)
    wider = replace(network.size, video_x=network.size.video_x + 1)
    state = Ranker(wider, network.genres_of_video).state_dict()
    torch.save({"size": asdict(wider), "state": state}, tmp_path / WEIGHTS_FILE)
    vocabulary.save(tmp_path)
    with pytest.raises(ReleaseError, match="tidemill models train ranker"):
        read_network(tmp_path)


def run_update(stack: Stack, log: TrainingLog) -> Outcome:
    return update("ranker", log, stack.store, stack.promoter, now_ms=log.until_ms)


def test_a_good_challenger_goes_live_and_the_feedback_is_used_once(
    stack: Stack, small_log: TrainingLog
) -> None:
    stack.go_live(1)
    outcome = run_update(stack, small_log)
    assert outcome.promoted, outcome.reasons
    live = stack.store.current()
    assert live == outcome.release
    assert live.models == {"ranker": 2}
    assert live.gate is not None
    assert live.gate["gauc"]["difference"][1] > 0
    assert stack.announced == ["r0001", "r0002"]
    assert 2 in stack.client.versions("ranker")
    assert watermark_ms(stack.store, "ranker") == small_log.until_ms
    with pytest.raises(NotEnoughData, match="since the last update"):
        run_update(stack, small_log)


def test_a_bad_challenger_is_refused_with_its_reasons(
    stack: Stack, poisoned_log: TrainingLog
) -> None:
    stack.go_live(1)
    outcome = run_update(stack, poisoned_log)
    assert not outcome.promoted
    assert "GAUC" in " ".join(outcome.reasons)
    assert stack.store.current().models == {"ranker": 1}  # type: ignore[union-attr]
    assert stack.announced == ["r0001"]
    assert stack.client.versions("ranker") == (1,)
    assert not stack.store.manifests()[-1].gate["promoted"]  # type: ignore[index]


def test_quarantined_feedback_trains_nothing(stack: Stack, small_log: TrainingLog) -> None:
    from models.release.bundle import Quarantine

    stack.go_live(1)
    stack.store.quarantine(Quarantine("r0001", 0, small_log.until_ms, "a test"))
    with pytest.raises(NotEnoughData, match="0 slates"):
        run_update(stack, small_log)


def test_the_wire_brings_tensors_back_bit_for_bit(stack: Stack) -> None:
    stack.repository.add_echo()
    stack.client.load("echo")
    sent = probe(seed=7)
    assert came_back(sent, stack.client.infer("echo", sent, timeout_s=10))


def test_a_release_of_another_process_is_found_without_a_server(
    store: ReleaseStore, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    asking = InProcessClient(folder)
    with pytest.raises(ModelUnavailable):
        asking.infer("ranker", canary(2), version=1)
    Stack(store, ModelRepository(folder), InProcessClient(folder)).go_live(1)
    assert asking.infer("ranker", canary(2), version=1)["score"].shape == (2,)


def test_a_changed_bundle_is_refused(store: ReleaseStore) -> None:
    path = store.bundle("ranker", 1).path / "vocabulary.npz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ReleaseError, match="changed after its seal"):
        store.propose({"ranker": 1}, created_ms=1)


def test_a_missing_bundle_names_the_command(store: ReleaseStore) -> None:
    with pytest.raises(ReleaseError, match="tidemill models train ranker"):
        store.propose({"ranker": 9}, created_ms=1)


def test_a_store_read_anew_says_the_same(store: ReleaseStore) -> None:
    release = store.propose({"ranker": 1}, created_ms=5, gate={"promoted": True})
    store.set_current(release.release_id, at_ms=6)
    again = ReleaseStore(store.folder)
    assert again.current() == release
    assert again.live_since_ms() == 6
    assert successor(again, {"queries": 4}) == {"ranker": 1, "queries": 4}


def test_an_announcement_is_the_manifest(store: ReleaseStore) -> None:
    release = store.propose({"ranker": 1}, created_ms=5)
    assert json.loads(announcement(release).value or b"")["models"] == {"ranker": 1}


def test_a_canary_comes_back_as_it_was_stored(trained: Path) -> None:
    stored = read_canary(trained)
    assert stored is not None
    assert all(np.array_equal(stored[name], tensor) for name, tensor in canary().items())


def test_the_served_ranker_imports_nothing_that_the_backend_refuses(trained: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from models.release.bundle import read_bundle; from models.registry import load\n"
        "from models.signature import BadInput\n"
        f"load('models.ranking.ple.runtime:RankerRuntime')(Path({str(trained)!r}))\n"
        "print(sorted({'pyarrow', 'feast', 'polars', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
