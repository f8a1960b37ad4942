"""Laws of every served model, whatever its kind: one suite over the registry.

A model that is added to `models.registry` is tested here without a line of its own. What a kind
is taught and asked is stated per kind: its models are asked and answer alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.memory_store import MemoryFeatureStore
from features.store import EntityName
from models.batch import Answer
from models.client import ModelClient, ModelUnavailable
from models.recipe import Runtime, ServingExample, TrainingLog
from models.registry import REGISTRY, ModelSpec, serving_problem
from models.release.bundle import BUNDLE_FILE, Bundle, ReleaseError, signature_mismatch
from models.release.canary import Canary, read_canary, wrong_answer
from models.release.in_process import InProcessClient
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.signature import BadInput, text_list
from models.stream import StreamRuntime, joined
from serving.clients.triton import TritonClient
from serving.fakes import FakeModelClient
from serving.pipeline.frames import absent_rows
from streams.bus.contract import Stamp
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.events import KIND_CODE, CatalogueItem
from streams.contract.schema import EVENT_SCHEMA
from streams.feedback.outcomes import FEEDBACK_SCHEMA
from streams.progress import no_progress

NAMES = tuple(REGISTRY)
START_MS = 1_700_000_000_000
USERS, SESSIONS, PLAYED, ITEMS = 40, 5, 12, 40  # items from PLAYED on are never acted on
GENRES = ("Comedy", "Horror", "War", "Drama")
MOST = 5_000
Tensors = dict[str, np.ndarray]


def _items() -> pl.DataFrame:
    numbers = range(ITEMS)
    return pl.DataFrame(
        {
            "video_id": [f"v{n}" for n in numbers],
            "title": [f"Film {n}" for n in numbers],
            "genres": [[GENRES[n % 4]] for n in numbers],
            "author_id": [f"a{n % 7}" for n in numbers],
            "duration_ms": [60_000] * ITEMS,
            "price_cents": [100] * ITEMS,
            "provenance": ["human"] * ITEMS,
            "created_ms": [START_MS - DAY_MS] * ITEMS,
            "available": [True] * ITEMS,
        },
        schema_overrides={"duration_ms": pl.Int64, "price_cents": pl.Int64},
    )


def _event(user: int, item: int, kind: str, at_ms: int) -> dict[str, object]:
    return {
        "event_id": f"{user}:{item}:{kind}:{at_ms}",
        "user_id": f"u{user}",
        "kind": kind,
        "event_time_ms": at_ms,
        "ingested_at_ms": at_ms,
        "surface": "external",
        "origin": "simulated",
        "video_id": f"v{item}",
        "author_id": f"a{item % 7}",
        "provenance": "human",
        "query": f"{GENRES[item % 4].lower()} films" if kind == "query_click" else None,
        "dwell_ms": 0 if kind == "play" else None,
        "amount_cents": 100 if kind == "order" else None,
        "late": False,
        "duplicate": False,
        "source_partition": 0,
        "source_offset": 0,
    }


@pytest.fixture(scope="session")
def tiny_log() -> TrainingLog:
    """Sessions of plays, likes, orders and query clicks on the first items; nothing on the others."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(USERS):
        for session in range(SESSIONS):
            at_ms = START_MS + (session * 48 + user) * HOUR_MS
            for step, item in enumerate(rng.choice(PLAYED, 4, replace=False).tolist()):
                kinds = ("play", "like", "query_click", "order")[: 2 + step % 3]
                rows += [
                    _event(user, item, k, at_ms + 60_000 * step + 10 * n)
                    for n, k in enumerate(kinds)
                ]
    empty = pl.from_arrow(EVENT_SCHEMA.empty_table())
    feedback = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    assert isinstance(feedback, pl.DataFrame)
    schema = empty.with_columns(pl.col("kind").cast(pl.String)).schema
    events = pl.DataFrame(rows, schema=schema).sort("event_time_ms", "event_id")
    return TrainingLog(events, _items(), feedback, START_MS + 12 * DAY_MS)


def _catalogue(count: int) -> list[CatalogueItem]:
    """The first items, again from the first on where there are fewer."""
    rows = _items().to_dicts()
    return [
        CatalogueItem(
            video_id=f"v{n}",
            title=str(rows[n % ITEMS]["title"]),
            genres=tuple(rows[n % ITEMS]["genres"]),
            author_id=str(rows[n % ITEMS]["author_id"]),
        )
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def known_example(tiny_log: TrainingLog) -> ServingExample:
    """What serving reads after the tiny log was folded: a user of it, and the whole catalogue."""
    codes = pl.col("kind").replace_strict(KIND_CODE, return_dtype=pl.UInt8)
    events = tiny_log.events.with_columns(kind=codes).to_arrow()
    table = events.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
    store, items, now_ms = MemoryFeatureStore(), _catalogue(ITEMS), tiny_log.until_ms
    entities: tuple[EntityName, ...] = ("user", "video", "author")
    for entity in entities:
        store.fold(entity, table, Stamp("log", 0, 0))
    authors = [item.author_id or "" for item in items]
    return ServingExample(
        user=store.read("user", ["u0"], now_ms),
        item_features=store.read("video", [item.video_id for item in items], now_ms),
        author_features=store.read("author", authors, now_ms),
        items=items,
        now_ms=now_ms,
    )


def _example(history: tuple[str, ...] = (), items: int = ITEMS) -> ServingExample:
    """A user with this history (newest first), about items of which nothing was read."""
    found = _catalogue(items)
    times = [START_MS + 9 * DAY_MS - n * HOUR_MS for n in range(len(history))]
    lists = {
        "engaged_video_id": list(history),
        "engaged_kind": ["play"] * len(history),
        "engaged_time_ms": times,
    }
    user = absent_rows("user", ["u0"])
    columns = {name: _one_list(value) for name, value in lists.items()}
    return ServingExample(
        user=replace(user, columns={**user.columns, **columns}),
        item_features=absent_rows("video", [item.video_id for item in found]),
        author_features=absent_rows("author", [item.author_id or "" for item in found]),
        items=found,
        now_ms=START_MS + 12 * DAY_MS,
    )


def _one_list(values: list[object]) -> np.ndarray:
    column = np.empty(1, dtype=object)
    column[0] = values
    return column


def _taught_ranking(answer: Tensors) -> float:
    """AUC of the items that were acted on against the others."""
    acted, other = answer["score"][:PLAYED], answer["score"][PLAYED:]
    return float((acted[:, None] > other[None, :]).mean())


def _taught_queries(answer: Tensors) -> float:
    """Whether the best query is the one that was clicked under the item."""
    return float(text_list(answer["query"])[0] == f"{GENRES[0].lower()} films")


def _taught_trajectory(answer: Tensors) -> float:
    """The share of steps to items that were acted on."""
    return float(np.mean([int(item[1:]) < PLAYED for item in text_list(answer["video_id"])]))


TAUGHT: dict[str, Callable[[Tensors], float]] = {
    "ranker": _taught_ranking,
    "queries": _taught_queries,
    "reactivation": _taught_trajectory,
}
LEAST_TAUGHT = 0.95
QUICK = {"steps": 60, "batch": 64, "threads": 1}


@dataclass(frozen=True)
class Built:
    """One model, trained on the tiny log and sealed."""

    spec: ModelSpec
    store: ReleaseStore
    bundle: Bundle
    runtime: Runtime
    canary: Canary
    known: ServingExample

    def requests(self) -> dict[str, Tensors]:
        """What any model must answer: a known user, a cold one, no candidates, very many."""
        ask = self.spec.load_canary()
        blank = [] if self.spec.candidate_inputs else [CatalogueItem(video_id="?", title="")]
        return {
            "canary": dict(self.canary.request),
            "known": ask(self.known),
            "cold": ask(_example()),
            "empty": ask(replace(_example(items=len(blank)), items=blank)),
            "5,000": ask(_example(tuple(f"unknown {n}" for n in range(MOST)), MOST)),
        }


@pytest.fixture(scope="module")
def built_models() -> dict[str, Built]:
    """Filled by `built`, so that each model is trained once."""
    return {}


def _trained(spec: ModelSpec, log: TrainingLog, store: ReleaseStore) -> Bundle:
    """As `models.training.build.train_model`, with fewer steps where a recipe counts them."""
    recipe: Any = spec.load_recipe()
    fewer = {name: n for name, n in QUICK.items() if hasattr(getattr(recipe, "config", None), name)}
    if fewer:
        recipe.config = replace(recipe.config, **fewer)
    staging = store.staging(spec.name)
    recipe.train(log, staging, seed=0, progress=no_progress)
    return store.seal(
        spec.name,
        staging,
        runtime=spec.runtime,
        signature=spec.load_signature(),
        created_ms=log.until_ms,
    )


@pytest.fixture(params=NAMES)
def built(
    request: pytest.FixtureRequest,
    built_models: dict[str, Built],
    tiny_log: TrainingLog,
    known_example: ServingExample,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    name = request.param
    if name not in built_models:
        spec, store = REGISTRY[name], ReleaseStore(tmp_path_factory.mktemp(f"contract-{name}"))
        bundle = _trained(spec, tiny_log, store)
        canary = read_canary(bundle.path, bundle.runtime)
        assert canary is not None, "a recipe writes a canary (`models.release.canary.write_canary`)"
        assert canary.answer is not None
        runtime = spec.load_runtime()(bundle.path)
        built_models[name] = Built(spec, store, bundle, runtime, canary, known_example)
    return built_models[name]


def test_every_part_of_the_spec_can_be_loaded(built: Built) -> None:
    spec = built.spec
    assert spec.load_recipe().name == spec.name
    assert built.runtime.signature == spec.load_signature() == built.bundle.signature
    assert serving_problem(spec.kind, spec.name) == ""
    assert spec.kind in TAUGHT
    assert callable(spec.load_assemble())


def test_it_learns_what_a_tiny_log_teaches(built: Built) -> None:
    answer = built.runtime.infer(built.requests()["known"])
    assert TAUGHT[built.spec.kind](answer) >= LEAST_TAUGHT


def test_it_answers_empty_cold_and_very_large_requests(built: Built) -> None:
    for name, tensors in built.requests().items():
        built.spec.load_signature().check_inputs(tensors)
        answer = built.runtime.infer(tensors)
        for spec in built.runtime.signature.outputs:
            found = answer[spec.name]
            assert found.ndim == len(spec.shape), (name, spec.name)
            assert found.dtype.kind != "f" or np.isfinite(found).all(), (name, spec.name)
        for output in built.spec.candidate_outputs:
            rows = len(tensors[built.spec.candidate_inputs[0]])
            assert len(answer[output]) == rows, (name, output)


def test_its_fake_answers_in_its_form(built: Built) -> None:
    fake = built.spec.load_fake()
    for name in ("canary", "known", "cold"):
        request = built.requests()[name]
        assert wrong_answer(built.spec.name, Canary(request), fake(request)) == ""
        again = fake(request)
        assert all(np.array_equal(again[n], tensor) for n, tensor in fake(request).items())


def test_its_parts_add_up_to_its_answer(built: Built, tmp_path: Path) -> None:
    """One part where it does not stream."""
    assert built.spec.streams == isinstance(built.runtime, StreamRuntime)
    repository = ModelRepository(tmp_path / "repository")
    repository.add(built.bundle)
    client = InProcessClient(repository.folder)
    client.load_all()
    assert_streams_as_it_answers(built, client)
    fake = FakeModelClient({built.spec.name: built.spec.load_fake()})
    request = built.requests()["known"]
    parts = list(fake.infer_stream(built.spec.name, request))
    assert_equal(joined(parts), fake.infer(built.spec.name, request), "fake")


def assert_streams_as_it_answers(built: Built, client: ModelClient) -> None:
    most = 0
    for name, tensors in built.requests().items():
        found = client.infer_stream(
            built.spec.name, tensors, version=built.bundle.version, timeout_s=60.0
        )
        parts = list(found)
        assert_equal(joined(parts), built.runtime.infer(tensors), name)
        most = max(most, len(parts))
    assert built.spec.streams or most == 1
    foreign = dict(built.canary.request)
    missing = built.runtime.signature.inputs[0].name
    foreign.pop(missing)
    with pytest.raises(BadInput, match=missing):
        next(client.infer_stream(built.spec.name, foreign, timeout_s=60.0))


def test_its_canary_tells_a_right_answer_from_a_wrong_one(built: Built) -> None:
    right = built.runtime.infer(built.canary.request)
    assert wrong_answer(built.spec.name, built.canary, right) == ""
    for name, tensor in right.items():
        wrong = tensor + np.ones(1, tensor.dtype) if tensor.dtype.kind in "fi" else tensor[:0]
        assert name in wrong_answer(built.spec.name, built.canary, right | {name: wrong}), name
        assert wrong_answer(built.spec.name, built.canary, right | {name: tensor[:0]}), name
        fewer = {other: found for other, found in right.items() if other != name}
        assert name in wrong_answer(built.spec.name, built.canary, fewer)


def test_a_request_outside_its_signature_is_refused_by_name(built: Built) -> None:
    request = dict(built.canary.request)
    for spec in built.runtime.signature.inputs:
        fewer = {name: tensor for name, tensor in request.items() if name != spec.name}
        with pytest.raises(BadInput, match=spec.name):
            built.runtime.infer(fewer)
        with pytest.raises(BadInput, match=spec.name):
            built.runtime.infer(request | {spec.name: request[spec.name][None]})


def test_a_bundle_of_a_foreign_signature_is_not_served(built: Built, tmp_path: Path) -> None:
    stated = built.bundle.signature
    foreign = replace(stated, inputs=stated.inputs[1:])
    staging = built.store.staging(built.spec.name)
    shutil.copytree(built.bundle.path, staging, dirs_exist_ok=True)
    (staging / BUNDLE_FILE).unlink()
    sealed = built.store.seal(
        built.spec.name, staging, runtime=built.spec.runtime, signature=foreign, created_ms=1
    )
    assert stated.inputs[0].name in signature_mismatch(sealed)
    repository = ModelRepository(tmp_path / "repository")
    repository.add(sealed)
    with pytest.raises(ModelUnavailable, match="another signature"):
        InProcessClient(repository.folder).load(built.spec.name)


def test_a_truncated_bundle_is_refused_and_harms_nothing(built: Built, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "repository")
    repository.add(built.bundle)
    client = InProcessClient(repository.folder)
    client.load(built.spec.name)
    files = [path.name for path in built.bundle.path.iterdir() if path.name != BUNDLE_FILE]
    refused = 0
    for version, name in enumerate(files, 100):
        broken = tmp_path / built.spec.name / str(version)
        shutil.copytree(built.bundle.path, broken)
        whole = (broken / name).read_bytes()
        (broken / name).write_bytes(whole[: len(whole) // 2])
        store = ReleaseStore(tmp_path / f"store-{version}")
        shutil.copytree(broken, store.folder / "bundles" / built.spec.name / "1")
        with pytest.raises(ReleaseError, match="changed after its seal"):
            store.bundle(built.spec.name, 1)
        repository.add(replace(built.bundle, version=version, path=broken))
        try:
            client.load(built.spec.name)
        except ModelUnavailable:
            refused += 1
        answer = client.infer(built.spec.name, built.canary.request, version=built.bundle.version)
        assert wrong_answer(built.spec.name, built.canary, answer) == ""
        repository.keep_only(built.spec.name, {built.bundle.version})
    assert refused >= 1, "no file of the bundle is read by its runtime"


@pytest.fixture
def served(built: Built, request: pytest.FixtureRequest) -> Iterator[tuple[Built, ModelClient]]:
    server = request.getfixturevalue("triton_server")
    client, repository = TritonClient(server.grpc_address), ModelRepository(server.repository)
    repository.keep_only(built.spec.name, ())
    repository.add(built.bundle)
    client.load(built.spec.name)
    yield built, client
    repository.keep_only(built.spec.name, ())
    client.close()


def assert_equal(there: Answer, here: Answer, name: str) -> None:
    assert not isinstance(there, BadInput), name
    assert not isinstance(here, BadInput), name
    assert there.keys() == here.keys()
    for output, tensor in here.items():
        if tensor.dtype.kind == "f":
            np.testing.assert_allclose(there[output], tensor, atol=1e-5, err_msg=name)
        else:
            assert np.array_equal(there[output], tensor), (name, output)


def test_several_requests_in_one_call_are_answered_as_one_by_one(
    served: tuple[Built, ModelClient], tmp_path: Path
) -> None:
    built, client = served
    repository = ModelRepository(tmp_path / "repository")
    repository.add(built.bundle)
    inside = InProcessClient(repository.folder)
    inside.load(built.spec.name)
    requests = built.requests()
    foreign = dict(requests["canary"])
    foreign.pop(built.runtime.signature.inputs[0].name)
    for each in (inside, client):
        *answers, refused, last = each.infer_many(
            built.spec.name, [*requests.values(), foreign, requests["cold"]], timeout_s=60.0
        )
        assert isinstance(refused, BadInput)
        assert built.runtime.signature.inputs[0].name in str(refused)
        for name, answer in zip(requests, answers, strict=True):
            assert_equal(answer, built.runtime.infer(requests[name]), name)
        assert_equal(last, built.runtime.infer(requests["cold"]), "cold")
        assert each.infer_many(built.spec.name, []) == []


def test_triton_streams_what_it_answers(served: tuple[Built, ModelClient]) -> None:
    built, client = served
    assert_streams_as_it_answers(built, client)


def test_triton_answers_as_the_process_does(served: tuple[Built, ModelClient]) -> None:
    built, client = served
    for name, tensors in built.requests().items():
        here = built.runtime.infer(tensors)
        there = client.infer(built.spec.name, tensors, version=built.bundle.version, timeout_s=30.0)
        assert_equal(there, here, name)
