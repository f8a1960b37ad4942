"""The model server: tensors arrive unchanged and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from deploy import wiring
from deploy.services import process, triton
from deploy.services.liveness import children_of
from deploy.services.triton import Triton
from deploy.settings import Settings, TritonSettings
from deploy.supervisor import LOOK_EVERY_S, Supervised, Supervisor

WriteModel = Callable[[Path, str], None]


def _doubled(address: str, model: str, values: np.ndarray) -> np.ndarray:
    with grpc.InferenceServerClient(address) as client:
        tensor = grpc.InferInput("IN", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        result = client.infer(model, [tensor], client_timeout=30).as_numpy("OUT")
    assert result is not None
    return result


def test_tensors_arrive_unchanged(triton_server: Triton, write_doubling_model: WriteModel) -> None:
    write_doubling_model(triton_server.repository, "doubling")
    with grpc.InferenceServerClient(triton_server.grpc_address) as client:
        client.load_model("doubling")
    values = np.arange(100_000, dtype=np.float32)
    np.testing.assert_array_equal(
        _doubled(triton_server.grpc_address, "doubling", values), values * 2
    )


def test_a_restarted_server_has_its_models_again_and_leaves_no_shared_memory(
    triton_overlay: Path, tmp_path: Path, write_doubling_model: WriteModel
) -> None:
    assert triton_overlay.exists()
    server = Triton(tmp_path, tmp_path / "repository")
    write_doubling_model(server.repository, "kept")
    write_doubling_model(server.repository, "broken")
    (server.repository / "broken" / "1" / "model.py").write_text("raise RuntimeError('broken')")
    first = process.start(server)
    first.kill()
    with process.running(server) as child:
        values = np.ones(3, dtype=np.float32)
        assert _doubled(server.grpc_address, "kept", values).tolist() == [2, 2, 2]
        assert child.alive()
    server.sweep()
    assert triton.shared_memory(server.grpc_address) == []
    assert not any(map(process.listening, (server.grpc_port, server.http_port)))


def test_a_failing_self_test_is_not_ready(triton_server: Triton, tmp_path: Path) -> None:
    asked: list[str] = []

    def refuse(address: str) -> bool:
        asked.append(address)
        return False

    same = Triton(
        tmp_path,
        triton_server.repository,
        grpc_port=triton_server.grpc_port,
        http_port=triton_server.http_port,
        self_test=refuse,
    )
    assert triton_server.ready()
    assert not same.ready()
    assert asked == [triton_server.grpc_address]


def test_only_complete_models_are_loaded_at_start(
    tmp_path: Path, write_doubling_model: WriteModel
) -> None:
    write_doubling_model(tmp_path, "whole")
    (tmp_path / "no-version").mkdir()
    (tmp_path / "no-version" / "config.pbtxt").write_text("")
    (tmp_path / "no-config" / "1").mkdir(parents=True)
    assert triton.stored_models(tmp_path) == ["whole"]


def test_another_platform_is_reported_with_the_alternatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(triton.platform, "machine", lambda: "arm64")
    assert "TIDEMILL_TRITON__KIND=in_process" in triton.available()
    with pytest.raises(process.ServiceUnavailable, match="Darwin arm64"):
        triton.server_dir()


def test_a_killed_process_of_a_model_is_told_by_its_command_and_the_model_loaded_again(
    triton_overlay: Path, tmp_path: Path, write_doubling_model: WriteModel
) -> None:
    assert triton_overlay.exists()
    server = Triton(tmp_path, tmp_path / "repository")
    write_doubling_model(server.repository, "doubling")
    told: list[Path] = []
    settings = Settings(
        home=tmp_path / "home",
        triton=TritonSettings(kind="external", grpc_address=server.grpc_address),
    )

    def reload(command: Sequence[str]) -> None:
        told.append(next(Path(word) for word in command if word.endswith("/model.py")))
        assert wiring.reload_model(settings, "doubling", told[-1])

    def stubs() -> list[int]:
        return list(children_of(supervisor.status()[0].pid or 0))

    supervisor = Supervisor(lambda _: None)
    try:
        supervisor.start([Supervised(server, ready_within_s=120.0, child_killed=reload)])
        before = stubs()
        assert len(before) == 1
        time.sleep(2 * LOOK_EVERY_S)  # the supervisor has seen it
        os.kill(before[0], signal.SIGKILL)
        assert process.wait_until(lambda: bool(told) and stubs() not in ([], before), 60)
        assert told[0].parts[-3:] == ("doubling", "1", "model.py")
        values = np.ones(2, dtype=np.float32)
        assert process.wait_until(lambda: _answers(server, values), 60)
        assert len(told) == 1
    finally:
        supervisor.stop()
        server.sweep()


def _answers(server: Triton, values: np.ndarray) -> bool:
    try:
        return bool(_doubled(server.grpc_address, "doubling", values).tolist() == [2, 2])
    except InferenceServerException:
        return False
