"""Laws of answers in parts: a beam gives what it has decided, and a real Triton streams, ends what no
one waits for, and survives callers that leave at any moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from deploy.services.triton import Triton
from models.client import ModelUnavailable
from models.layers.decode import DecoderState, DecodeTables, beam_search, beam_search_parts
from models.layers.pointers import POINTERS
from models.layers.trie import build_trie
from models.registry import QUERIES, REGISTRY, import_attribute
from models.release.canary import Canary
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.signature import BadInput
from models.stream import joined, stream_form
from serving.clients.triton import TritonClient
from serving.monitoring.canary import Canaries
from serving.monitoring.model_monitor import ModelMonitor
from serving.pipeline.query import Release
from serving.state.catalogue import LiveCatalogue
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock

MODULE = "tests.models.toy_stream"
request = import_attribute(f"{MODULE}:request")
gate_of = import_attribute(f"{MODULE}:gate_of")
SPEC = replace(
    QUERIES,
    name="toy_stream",
    kind="toy",
    runtime=f"{MODULE}:ToyRuntime",
    signature=f"{MODULE}:SIGNATURE",
)


class FixedNetwork:
    """A decoder that always gives the same hidden state. It counts its steps."""

    def __init__(self, hidden: np.ndarray) -> None:
        self.hidden, self.steps = hidden.astype(np.float32), 0

    def write(
        self, kept: tuple[np.ndarray, ...], word: np.ndarray, step: int, past: DecoderState | None
    ) -> DecoderState:
        del kept, step, past
        self.steps += 1
        beams = len(word)
        none = np.zeros((1, beams, 1, 0, 1), np.float32)
        hidden, gates = (
            np.tile(self.hidden, (beams, 1)),
            np.zeros((beams, len(POINTERS)), np.float32),
        )
        return DecoderState(hidden, gates, none, none)


def _search(seed: int, k: int) -> tuple[list[tuple[int, float]], list[tuple[int, int]]]:
    """The whole search, and (rank, steps until then) of each sequence that was given in parts."""
    rng = np.random.default_rng(seed)
    words, end = 6, 6
    texts = {tuple(rng.integers(0, words, rng.integers(1, 6)).tolist()) for _ in range(40)}
    trie = build_trie(sorted(texts), end)
    tables = DecodeTables(
        trie, rng.normal(size=(words + 1, 4)).astype(np.float32), np.ones(len(trie), np.float32)
    )
    pointed, hidden = np.zeros((3, len(texts)), np.float32), 2 * rng.normal(size=4)
    how = {"begin": 0, "k": k, "width": 24, "blocked": np.zeros(0, np.int64)}
    whole = beam_search(FixedNetwork(hidden), tables, (), pointed, **how)
    network, given = FixedNetwork(hidden), []
    for part in beam_search_parts(network, tables, (), pointed, **how):
        for pair in part:
            assert pair == whole[len(given)]
            given.append((len(given), network.steps))
    assert len(given) == len(whole)
    return whole, [*given, (len(given), network.steps)]


def test_parts_of_a_beam_are_its_result_in_order_and_the_best_comes_before_the_end() -> None:
    early = 0
    for seed in range(40):
        whole, given = _search(seed, k=5)
        assert whole == sorted(whole, key=lambda pair: (-pair[1], pair[0]))
        early += given[0][1] < given[-1][1]
    assert early >= 20, "the first is nearly always decided at the last step"


@dataclass(frozen=True)
class Served:
    client: TritonClient
    repository: ModelRepository


@pytest.fixture(scope="module")
def served(triton_server: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    REGISTRY[SPEC.name] = SPEC
    store = ReleaseStore(tmp_path_factory.mktemp("toy-store"))
    staging = store.staging(SPEC.name)
    (staging / "nothing").write_text("")
    bundle = store.seal(
        SPEC.name,
        staging,
        runtime=SPEC.runtime,
        signature=SPEC.load_signature(),
        created_ms=1,
    )
    repository = ModelRepository(triton_server.repository)
    repository.add(bundle)
    client = TritonClient(triton_server.grpc_address)
    client.load(SPEC.name)
    yield Served(client, repository)
    repository.keep_only(SPEC.name, ())
    client.close()
    del REGISTRY[SPEC.name]


def test_both_names_are_served_and_only_one_is_a_model(served: Served) -> None:
    loaded = served.client.loaded()
    assert loaded[SPEC.name] == loaded[stream_form(SPEC.name)] == (1,)
    assert SPEC.name in served.repository.models()
    assert stream_form(SPEC.name) not in served.repository.models()


def test_parts_arrive_one_by_one_and_add_up(served: Served, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    asked = request(4, pause_ms=-1, trace=str(trace))
    parts = served.client.infer_stream(SPEC.name, asked, version=1, timeout_s=60.0)
    first = next(parts)
    assert trace.read_text() == "0\n", "the first part came after others were made"
    gate_of(str(trace)).touch()
    whole = served.client.infer(SPEC.name, request(4), timeout_s=60.0)
    for name, tensor in joined([first, *parts]).items():
        assert np.array_equal(tensor, whole[name])


def test_a_failure_after_some_parts_is_raised_after_them(served: Served) -> None:
    parts = served.client.infer_stream(SPEC.name, request(4, fails_at=2), timeout_s=60.0)
    assert [next(parts)["number"].tolist() for _ in range(2)] == [[0], [1]]
    with pytest.raises(ModelUnavailable, match="no part 2"):
        next(parts)
    assert len(list(served.client.infer_stream(SPEC.name, request(2), timeout_s=60.0))) == 2


def test_a_bad_request_is_named_and_an_unknown_version_is_unavailable(served: Served) -> None:
    fewer = {name: tensor for name, tensor in request(1).items() if name != "count"}
    for asked in (fewer, request(0), request(1) | {"count": np.array([1.5])}):
        with pytest.raises(BadInput, match="count"):
            next(served.client.infer_stream(SPEC.name, asked, timeout_s=60.0))
    with pytest.raises(ModelUnavailable, match="version 7"):
        next(served.client.infer_stream(SPEC.name, request(1), version=7, timeout_s=60.0))


def _made(trace: Path) -> int:
    """How many parts were made, once no more are."""
    found = -1
    while found != (now := len(trace.read_text().splitlines())):
        found = now
        time.sleep(0.5)
    return found


@pytest.mark.parametrize("how", ["close", "deadline"])
def test_what_no_one_waits_for_is_ended(served: Served, tmp_path: Path, how: str) -> None:
    trace = tmp_path / "trace"
    asked = request(400, pause_ms=50, trace=str(trace))
    timeout_s = 3.0 if how == "deadline" else 60.0
    parts = served.client.infer_stream(SPEC.name, asked, timeout_s=timeout_s)
    next(parts)
    if how == "close":
        parts.close()
    else:
        with pytest.raises(ModelUnavailable, match="in time"):
            list(parts)
    assert _made(trace) < 400


def test_callers_that_leave_at_any_moment_do_not_harm_the_server(served: Served) -> None:
    """Cancelling a stream that is about to end crashes Triton 2.51: requests are cancelled instead."""
    for n in range(200):
        parts = served.client.infer_stream(SPEC.name, request(1 + n % 3), timeout_s=60.0)
        next(parts)
        parts.close()
    several = list(served.client.infer_stream(SPEC.name, request(3), timeout_s=60.0))
    assert len(several) == 3
    assert served.client.healthy()


def test_a_model_without_a_streaming_form_gives_one_part(served: Served) -> None:
    served.client._client.unload_model(stream_form(SPEC.name))
    (whole,) = served.client.infer_stream(SPEC.name, request(3), timeout_s=60.0)
    assert whole["number"].tolist() == [0, 1, 2]
    served.client.load(SPEC.name)


def test_a_dead_streaming_process_is_a_fault_that_a_reload_heals(
    served: Served, model_pid: Callable[[Path], int]
) -> None:
    """Its own process: whole answers go on meanwhile."""
    live = Release("r0001", {SPEC.name: 1})
    canary = Canary(
        request(2), joined(served.client.infer_stream(SPEC.name, request(2), timeout_s=60.0))
    )
    canaries = Canaries(None, LiveCatalogue(Catalogue()), WallClock())
    monitor = ModelMonitor(served.client, lambda: live, canaries)
    assert monitor._fault(SPEC.name, 1, canary, 60.0) is None
    os.kill(model_pid(served.repository.folder / stream_form(SPEC.name) / "1"), signal.SIGKILL)
    with pytest.raises(ModelUnavailable):
        list(served.client.infer_stream(SPEC.name, request(2), timeout_s=5.0))
    assert len(served.client.infer(SPEC.name, request(2), timeout_s=60.0)["number"]) == 2
    fault = monitor._fault(SPEC.name, 1, canary, 5.0)
    assert fault is not None
    assert fault.kind in ("dead", "silent")
    served.client.reload(SPEC.name)
    assert monitor._fault(SPEC.name, 1, canary, 60.0) is None


def test_a_missing_server_is_unavailable(free_port: int) -> None:
    absent = TritonClient(f"127.0.0.1:{free_port}")
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            next(absent.infer_stream(SPEC.name, request(1), timeout_s=5.0))
    absent.close()
