"""A small log with a planted taste, and an incumbent trained on its first half."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from deploy.services import triton
from models.ranking.ple.config import RankerConfig, RankerTraining
from models.ranking.ple.recipe import RankerRecipe
from models.recipe import TrainingLog
from models.registry import REGISTRY
from models.release.bundle import Bundle
from models.release.canary import Canary, write_canary, wrong_answer
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.signature import Signature
from serving.clients.triton import TritonClient
from serving.monitoring.canary import Canaries
from serving.monitoring.model_monitor import ModelMonitor
from serving.pipeline.query import Release
from serving.state.catalogue import LiveCatalogue
from streams.catalogue import Catalogue
from streams.contract.clock import DAY_MS, WallClock
from streams.contract.schema import EVENT_SCHEMA
from streams.feedback.outcomes import FEEDBACK_SCHEMA, FEEDBACK_TASKS
from streams.progress import no_progress

START_MS = 1_700_000_000_000
SERVED_MS = START_MS + 20 * DAY_MS
END_MS = START_MS + 31 * DAY_MS
USERS, ITEMS, GENRES = 60, 90, 6
AUTHORS = 7  # each of every genre, so that an author does not reveal the new taste
SLATES, SLOTS = 20, 6

QUICK = RankerConfig(
    interactions=700,
    evaluated_interactions=300,
    training=RankerTraining(epochs=4, groups=64, id_dropout=0.05),
)


def _items() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "video_id": [f"v{n}" for n in range(ITEMS)],
            "title": [f"Film {n}" for n in range(ITEMS)],
            "genres": [[f"genre-{n % GENRES}"] for n in range(ITEMS)],
            "author_id": [f"a{n % AUTHORS}" for n in range(ITEMS)],
            "duration_ms": [60_000] * ITEMS,
            "price_cents": [100] * ITEMS,
            "provenance": ["human"] * ITEMS,
            "created_ms": [START_MS - DAY_MS] * ITEMS,
            "available": [True] * ITEMS,
        },
        schema_overrides={"duration_ms": pl.Int64, "price_cents": pl.Int64},
    )


def _event(user: int, item: int, kind: str, at_ms: int, token: str | None) -> dict[str, object]:
    return {
        "event_id": f"{user}:{item}:{kind}:{at_ms}",
        "user_id": f"u{user}",
        "kind": kind,
        "event_time_ms": at_ms,
        "ingested_at_ms": at_ms,
        "surface": "feed" if token else "external",
        "origin": "simulated",
        "request_id": token.split(":")[0] if token else None,
        "impression": token,
        "video_id": f"v{item}",
        "author_id": f"a{item % AUTHORS}",
        "provenance": "human",
        "query": None,
        "dwell_ms": 0 if kind == "play" else None,
        "amount_cents": None,
        "late": False,
        "duplicate": False,
        "source_partition": 0,
        "source_offset": 0,
    }


def _interactions(rng: np.random.Generator) -> list[dict[str, object]]:
    """Fourteen items per user over 20 days, eleven of them from the user's own genre."""
    events = []
    for user in range(USERS):
        own = np.arange(user % GENRES, ITEMS, GENRES)
        loved = rng.choice(own, 11, replace=False)
        others = rng.choice(np.setdiff1d(np.arange(ITEMS), own), 3, replace=False)
        times = np.sort(rng.integers(START_MS, SERVED_MS, 14))
        for item, at_ms in zip(rng.permutation(np.r_[loved, others]), times, strict=True):
            events.append(_event(user, int(item), "play", int(at_ms), None))
            if item in loved:
                events.append(_event(user, int(item), "like", int(at_ms) + 10, None))
    return events


def _slates(rng: np.random.Generator) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Random slates; every user now likes genre 0, and lower slots are looked at less."""
    events, feedback = [], []
    for user in range(USERS):
        for turn in range(SLATES):
            served = int(SERVED_MS + (turn + rng.random()) / SLATES * 9 * DAY_MS)
            request = f"q{user}-{turn}"
            for slot, item in enumerate(rng.choice(ITEMS, SLOTS, replace=False)):
                token, shown = f"{request}:{slot}", served + 100
                likes = 0.7 if item % GENRES == 0 else 0.08
                acted = bool(rng.random() < likes / np.log2(slot + 2))
                events.append(_event(user, int(item), "shown", shown, token))
                if acted:
                    events.append(_event(user, int(item), "play", shown + 5_000, token))
                feedback.append(_feedback(user, int(item), slot, request, served, shown, acted))
    return events, feedback


def _feedback(
    user: int, item: int, slot: int, request: str, served: int, shown: int, acted: bool
) -> dict[str, object]:
    tasks = {task: task == "play" and acted for task in FEEDBACK_TASKS}
    times = {f"{task}_at_ms": shown + 5_000 if done else None for task, done in tasks.items()}
    return (
        tasks
        | times
        | {
            "impression_id": f"{request}:{slot}",
            "request_id": request,
            "surface": "feed",
            "user_id": f"u{user}",
            "video_id": f"v{item}",
            "query": None,
            "slot": slot,
            "propensity": 1 / (ITEMS - slot),
            "explored": False,
            "release": "r0001",
            "served_at_ms": served,
            "shown_at_ms": shown,
            "dwell_ms": 0,
            "order_amount_cents": 0,
            "origin": "simulated",
            "matured_at_ms": shown + DAY_MS,
            "revision": 1,
        }
    )


def _frame(rows: list[dict[str, object]], like: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=like.schema)


@pytest.fixture(scope="session")
def small_log() -> TrainingLog:
    """Interactions by each user's own taste, then slates on which every user likes genre 0."""
    rng = np.random.default_rng(0)
    empty = pl.from_arrow(EVENT_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    empty = empty.with_columns(pl.col("kind").cast(pl.String))
    slate_events, feedback = _slates(rng)
    events = _frame(_interactions(rng) + slate_events, empty).sort("event_time_ms", "event_id")
    outcome = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(outcome, pl.DataFrame)
    matured = _frame(feedback, outcome).sort("matured_at_ms", "impression_id")
    return TrainingLog(events, _items(), matured, END_MS)


@pytest.fixture(scope="session")
def before_slates(small_log: TrainingLog) -> TrainingLog:
    """The same log before anything was served."""
    return replace(
        small_log,
        events=small_log.events.filter(pl.col("event_time_ms") < SERVED_MS),
        feedback=small_log.feedback.clear(),
        until_ms=SERVED_MS,
    )


@pytest.fixture(scope="session")
def quick_recipe() -> RankerRecipe:
    return RankerRecipe(QUICK)


@pytest.fixture(scope="session")
def trained(
    before_slates: TrainingLog, quick_recipe: RankerRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A ranker's bundle folder, trained before anything was served. Do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    quick_recipe.train(before_slates, folder, seed=0, progress=no_progress)
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> ReleaseStore:
    """A release store with the trained ranker sealed as version 1."""
    made = ReleaseStore(tmp_path / "releases")
    seal_copy(made, trained)
    return made


def seal_copy(store: ReleaseStore, folder: Path, signature: Signature | None = None) -> Bundle:
    """Seals another version with a trained folder's files; `signature`: other than today's."""
    import shutil

    from models.ranking.ple.inputs import SIGNATURE
    from models.registry import REGISTRY

    staging = store.staging("ranker")
    shutil.copytree(folder, staging, dirs_exist_ok=True)
    runtime = REGISTRY["ranker"].runtime
    stated = signature or SIGNATURE
    return store.seal("ranker", staging, runtime=runtime, signature=stated, created_ms=SERVED_MS)


@pytest.fixture(scope="session")
def reseal() -> object:
    """`seal_copy`, for tests that need several versions."""
    return seal_copy


@pytest.fixture(scope="session")
def replayed_log() -> TrainingLog:
    """MovieLens-100K as the simulation replays it; skipped where its wheel is not available."""
    from deploy.simulation.history import history
    from deploy.simulation.movielens import DataUnavailable

    try:
        past = history()
    except DataUnavailable as reason:
        pytest.skip(str(reason))
    outcome = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(outcome, pl.DataFrame)
    newest = past.frame["event_time_ms"].to_list()[-1]
    return TrainingLog(past.frame, past.items_frame, outcome, newest + 1)


@pytest.fixture(scope="session")
def poisoned_log(small_log: TrainingLog) -> TrainingLog:
    """The log with false labels in its earlier slates: passed-over candidates count as played."""
    from models.alignment.ranker import RankerUpdate
    from models.ranking.ple.data import impression_examples

    times = impression_examples(small_log, count=10_000).time_ms
    earlier = pl.col("served_at_ms") < int(np.quantile(times, RankerUpdate().train_share))
    play = pl.when(earlier).then(~pl.col("play")).otherwise(pl.col("play"))
    return replace(small_log, feedback=small_log.feedback.with_columns(play=play))


def running_pid(version: Path) -> int:
    """The newest process of a version folder on Triton that is neither dead nor frozen."""
    found = [
        process
        for process in psutil.process_iter(["name", "cmdline", "status", "create_time"])
        if process.info["name"] == "triton_python_backend_stub"
        and any(f"{version}/" in word for word in process.info["cmdline"] or ())
        and process.info["status"] not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    ]
    return int(max(found, key=lambda process: process.info["create_time"]).pid)


@pytest.fixture(scope="session")
def model_pid() -> Callable[[Path], int]:
    """`running_pid`, for tests that end a model's process."""
    return running_pid


@dataclass
class ServedModel:
    """One model that a real Triton serves, its monitor, and the process that runs it."""

    model: str
    client: TritonClient
    repository: Path
    monitor: ModelMonitor
    canary: Canary
    cold_load_s: float

    def wrong_answer(self) -> str:
        given = self.client.infer(self.model, self.canary.request, version=1, timeout_s=10.0)
        return wrong_answer(self.model, self.canary, given)

    def strike(self, number: signal.Signals) -> tuple[float, float]:
        """Signals the process; seconds until the fault is reported, and from then to its repair."""
        pid = running_pid(self.repository / self.model / "1")
        started_s = time.monotonic()
        os.kill(pid, number)
        try:
            self._wait(lambda: self.model in self.monitor.problems)
            seen_s = time.monotonic()
            self._wait(lambda: self.monitor.problems == {})
            repaired_s = time.monotonic()
        finally:
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)
        return seen_s - started_s, repaired_s - seen_s

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline_s, "the monitor did nothing for a minute"
            time.sleep(0.01)


@pytest.fixture
def serve(triton_server: triton.Triton, tmp_path: Path) -> Iterator[Callable[..., ServedModel]]:
    """`serve(model, folder, request)`: a folder's model on the real Triton, with its canary."""
    client = TritonClient(triton_server.grpc_address)
    repository = ModelRepository(triton_server.repository)
    store = ReleaseStore(tmp_path / "served-releases")
    served: list[ServedModel] = []

    def start(model: str, folder: Path, request: Mapping[str, np.ndarray]) -> ServedModel:
        entry = REGISTRY[model]
        staging = store.staging(model)
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        write_canary(staging, request, entry.load_runtime())
        bundle = store.seal(
            model,
            staging,
            runtime=entry.runtime,
            signature=entry.load_signature(),
            created_ms=SERVED_MS,
        )
        canary = store.canary(model, bundle.version)
        assert canary is not None
        assert canary.answer is not None
        repository.keep_only(model, ())
        repository.add(bundle)
        live = Release("r0001", {model: bundle.version})
        canaries = Canaries(store, LiveCatalogue(Catalogue()), WallClock())
        monitor = ModelMonitor(client, lambda: live, canaries)
        started_s = time.monotonic()
        client.load(model)
        served.append(ServedModel(model, client, repository.folder, monitor, canary, 0.0))
        assert served[-1].wrong_answer() == ""
        served[-1].cold_load_s = time.monotonic() - started_s
        monitor.start()
        return served[-1]

    yield start
    for each in served:
        each.monitor.stop()
        repository.keep_only(each.model, ())
    client.close()


@pytest.fixture
def assert_heals(serve: Callable[..., ServedModel]) -> Callable[..., None]:
    """The law of every model: its process dies or freezes, and it answers rightly again.

    The limits are those of a machine with idle cores, so the best of three kills counts.
    """

    def check(model: str, folder: Path, request: Mapping[str, np.ndarray]) -> None:
        served = serve(model, folder, request)
        kills = []
        for _ in range(3):
            kills.append(served.strike(signal.SIGKILL))
            assert served.wrong_answer() == ""
            seen_s, took_s = (min(each) for each in zip(*kills, strict=True))
            if seen_s <= 2.0 and took_s <= 1.5 * served.cold_load_s:
                break
        else:
            pytest.fail(f"{kills} s, a cold load takes {served.cold_load_s:.2f} s")
        served.strike(signal.SIGSTOP)
        assert served.wrong_answer() == ""

    return check
