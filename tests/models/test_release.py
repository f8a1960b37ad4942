"""Laws of releases: a seal is final, promotion is one atomic switch, bad releases never go live.

Run on the in-process client and on a real Triton alike.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
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
from models.echo import echo_matches, probe_tensors
from models.experiments.definition import Arm, Experiment
from models.experiments.store import ExperimentStore
from models.ranking.ple.export import WEIGHTS_FILE, read_network
from models.ranking.ple.inputs import SIGNATURE
from models.ranking.ple.network import Ranker
from models.ranking.ple.recipe import canary_request
from models.ranking.ple.runtime import RankerRuntime
from models.recipe import NotEnoughData, TrainingLog
from models.release.bundle import Bundle, ReleaseError
from models.release.canary import read_canary
from models.release.in_process import InProcessClient
from models.release.promotion import Promoter, announcement, successor
from models.release.store import Manifest, ReleaseStore
from models.release.triton_repository import ModelRepository
from models.signature import BadInput, Signature
from models.training.update import UpdateOutcome, update_model, watermark_ms

Reseal = Callable[[ReleaseStore, Path], Bundle]


@dataclass
class Stack:
    """A store, a server and the announced releases."""

    store: ReleaseStore
    repository: ModelRepository
    client: ModelClient
    announced: list[str] = field(default_factory=list)

    @property
    def promoter(self) -> Promoter:
        announce = lambda release: self.announced.append(release.release_id)  # noqa: E731
        return Promoter(self.store, self.repository, self.client, announce)

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
        inputs = canary_request(candidates)
        served = stack.client.infer("ranker", inputs, version=1, timeout_s=10)
        for name, tensor in runtime.infer(inputs).items():
            np.testing.assert_allclose(served[name], tensor, atol=1e-5)


def test_a_bad_request_does_not_fail_others(stack: Stack) -> None:
    stack.go_live(1)
    good, bad = canary_request(5), canary_request(5)
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


def test_a_release_that_an_experiment_serves_stays_loaded_until_the_experiment_stops(
    stack: Stack, trained: Path, reseal: Reseal
) -> None:
    for _ in range(4):
        reseal(stack.store, trained)
    stack.go_live(1)
    challenger = stack.store.propose({"ranker": 2}, created_ms=2)
    experiments = ExperimentStore()
    promoter = Promoter(
        stack.store, stack.repository, stack.client, lambda _: None, experiments.releases
    )
    promoter.stand_by(challenger)
    arms = (Arm("ranker", 0.9), Arm("challenger", 0.1, f"release:{challenger.release_id}"))
    experiments.start(Experiment("canary", arms))
    for version in (3, 4):  # the live release moves on twice, past the one kept for rollbacks
        promoter.promote(stack.store.propose({"ranker": version}, created_ms=3), now_ms=3)
    assert set(stack.client.versions("ranker")) == {2, 3, 4}
    assert stack.client.infer("ranker", canary_request(3), version=2, timeout_s=10)
    experiments.stop("canary", at_ms=4)
    promoter.prune()
    assert set(stack.client.versions("ranker")) == {3, 4}


def test_a_switch_of_releases_fails_no_request(stack: Stack, trained: Path, reseal: Reseal) -> None:
    stack.go_live(1)
    reseal(stack.store, trained)
    stop, failures, answered = threading.Event(), [], []

    def ask() -> None:
        inputs = canary_request(50)
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


def test_two_releases_stay_loaded_and_older_ones_are_unloaded(
    stack: Stack, trained: Path, reseal: Reseal
) -> None:
    for version in (1, 2, 3):
        if version > 1:
            reseal(stack.store, trained)
        stack.go_live(version)
    assert stack.client.versions("ranker") == (2, 3)
    assert stack.announced == ["r0001", "r0002", "r0003"]


def test_a_bundle_that_does_not_load_keeps_the_live_release(
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
    assert stack.client.infer("ranker", canary_request(2), version=1)["score"].shape == (2,)
    assert stack.announced == ["r0001"]
    assert stack.repository.versions("ranker") == (1,)


def test_a_rollback_quarantines_the_feedback_of_the_bad_release(
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


@pytest.mark.parametrize("stack", ["triton"], indirect=True)
def test_a_rollback_starts_the_dead_process_of_the_earlier_version_again(
    stack: Stack, trained: Path, reseal: Reseal, model_pid: Callable[[Path], int]
) -> None:
    stack.go_live(1)
    reseal(stack.store, trained)
    stack.go_live(2)
    os.kill(model_pid(stack.repository.folder / "ranker" / "1"), signal.SIGKILL)
    stop, failures = threading.Event(), []

    def ask_the_live_version() -> None:
        while not stop.wait(0.01):
            try:
                stack.client.infer("ranker", canary_request(2), version=2, timeout_s=10)
            except ModelUnavailable as error:
                failures.append(str(error))

    asking = threading.Thread(target=ask_the_live_version)
    asking.start()
    try:
        assert stack.promoter.rollback(now_ms=3, reason="a test").models == {"ranker": 1}
    finally:
        stop.set()
        asking.join()
    assert failures == []
    served = stack.client.infer("ranker", canary_request(2), version=1, timeout_s=10)
    assert served["score"].shape == (2,)


def test_a_release_of_another_signature_is_not_served_and_training_makes_a_new_one(
    stack: Stack, trained: Path, reseal: Any, small_log: TrainingLog
) -> None:
    """As after an upgrade: it is recorded as live, and its folder is in the repository."""
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
    assert stack.client.infer("ranker", canary_request(2), version=3)["score"].shape == (2,)
    with pytest.raises(ReleaseError, match=says):
        stack.promoter.rollback(now_ms=2, reason="a test")
    assert stack.store.current().models == {"ranker": 3}  # type: ignore[union-attr]
    assert stack.client.versions("ranker") == (3,)


def test_a_network_of_other_features_is_not_trained(trained: Path, tmp_path: Path) -> None:
    network, vocabulary = read_network(trained)
    wider = replace(network.size, video_x=network.size.video_x + 1)
    state = Ranker(wider, network.genres_of_video).state_dict()
    torch.save({"size": asdict(wider), "state": state}, tmp_path / WEIGHTS_FILE)
    vocabulary.save(tmp_path)
    with pytest.raises(ReleaseError, match="tidemill models train ranker"):
        read_network(tmp_path)


def run_update(stack: Stack, log: TrainingLog) -> UpdateOutcome:
    return update_model("ranker", log, stack.store, stack.promoter, now_ms=log.until_ms)


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
    assert watermark_ms(stack.store, "ranker") == small_log.feedback["matured_at_ms"].max()
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
    assert watermark_ms(stack.store, "ranker") == 0


def test_quarantined_feedback_is_not_trained_on(stack: Stack, small_log: TrainingLog) -> None:
    from models.release.store import Quarantine

    stack.go_live(1)
    stack.store.quarantine(Quarantine("r0001", 0, small_log.until_ms, "a test"))
    with pytest.raises(NotEnoughData, match="0 slates"):
        run_update(stack, small_log)


def test_the_echo_model_returns_tensors_bit_for_bit(stack: Stack) -> None:
    stack.repository.add_echo()
    stack.client.load("echo")
    sent = probe_tensors(seed=7)
    assert echo_matches(sent, stack.client.infer("echo", sent, timeout_s=10))


def test_the_in_process_client_finds_a_release_of_another_process(
    store: ReleaseStore, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    asking = InProcessClient(folder)
    with pytest.raises(ModelUnavailable):
        asking.infer("ranker", canary_request(2), version=1)
    Stack(store, ModelRepository(folder), InProcessClient(folder)).go_live(1)
    assert asking.infer("ranker", canary_request(2), version=1)["score"].shape == (2,)


def test_a_changed_bundle_is_refused(store: ReleaseStore) -> None:
    path = store.bundle("ranker", 1).path / "vocabulary.npz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ReleaseError, match="changed after its seal"):
        store.propose({"ranker": 1}, created_ms=1)


@pytest.mark.parametrize("moved", ["models.ranking.runtime:RankerRuntime"])
def test_a_bundle_that_names_a_moved_module_is_served(
    store: ReleaseStore, trained: Path, tmp_path: Path, moved: str
) -> None:
    """As sealed by an older checkout."""
    staging = store.staging("ranker")
    shutil.copytree(trained, staging, dirs_exist_ok=True)
    store.seal("ranker", staging, runtime=moved, signature=SIGNATURE, created_ms=1)
    folder = tmp_path / "repository"
    stack = Stack(store, ModelRepository(folder), InProcessClient(folder))
    stack.go_live(2)
    assert stack.client.infer("ranker", canary_request(2), version=2)["score"].shape == (2,)


def test_restoring_replaces_the_backend_of_an_older_checkout(
    store: ReleaseStore, tmp_path: Path
) -> None:
    repository = ModelRepository(tmp_path / "repository")
    repository.add_echo()
    Stack(store, repository, InProcessClient(repository.folder)).go_live(1)
    backends = [repository.folder / name / "1" / "model.py" for name in ("echo", "ranker")]
    current = backends[0].read_bytes()
    configs = {path: path.read_text() for path in repository.folder.glob("*/config.pbtxt")}
    for backend in backends:
        backend.write_text("from models.catalog import load")
    for config in configs:
        config.write_text("max_batch_size: 0")
    Stack(store, repository, InProcessClient(repository.folder)).promoter.restore()
    assert [backend.read_bytes() for backend in backends] == [current, current]
    assert {path: path.read_text() for path in configs} == configs


def test_a_missing_bundle_names_the_command(store: ReleaseStore) -> None:
    with pytest.raises(ReleaseError, match="tidemill models train ranker"):
        store.propose({"ranker": 9}, created_ms=1)


def test_a_reopened_store_has_the_same_state(store: ReleaseStore) -> None:
    release = store.propose({"ranker": 1}, created_ms=5, gate={"promoted": True})
    store.set_current(release.release_id, at_ms=6)
    again = ReleaseStore(store.folder)
    assert again.current() == release
    assert again.live_since_ms() == 6
    assert successor(again, {"queries": 4}) == {"ranker": 1, "queries": 4}


def test_an_announcement_is_the_manifest(store: ReleaseStore) -> None:
    release = store.propose({"ranker": 1}, created_ms=5)
    assert json.loads(announcement(release).value or b"")["models"] == {"ranker": 1}


def test_a_canary_is_read_as_it_was_written(trained: Path) -> None:
    runtime = "models.ranking.ple.runtime:RankerRuntime"
    stored = read_canary(trained, runtime)
    assert stored is not None
    assert stored.answer is not None
    for name, tensor in canary_request().items():
        assert np.array_equal(stored.request[name], tensor)
    for name, tensor in RankerRuntime(trained).infer(stored.request).items():
        assert np.array_equal(stored.answer[name], tensor)


def test_the_served_ranker_imports_nothing_that_the_backend_lacks(trained: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from models.release.bundle import read_bundle; from models.registry import import_attribute\n"
        "from models.signature import BadInput\n"
        f"import_attribute('models.ranking.ple.runtime:RankerRuntime')(Path({str(trained)!r}))\n"
        "print(sorted({'pyarrow', 'feast', 'polars', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
