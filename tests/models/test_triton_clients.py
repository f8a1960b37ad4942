"""docs/triton.md is right: its tables are the signatures, and its clients get Triton's answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from deploy.services.triton import Triton
from features.feast.registry import open_store
from models.recipe import ServingExample, TrainingLog
from models.registry import REGISTRY
from models.release.bundle import Bundle
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.signature import text_list
from serving.clients.triton import TritonClient
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Release
from serving.stages.scorers import Ranker
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache
from streams.bus.contract import Stamp
from streams.catalogue import CatalogueLog
from streams.contract.events import CATALOGUE_EVENT, KIND_CODE
from streams.contract.schema import EVENT_SCHEMA
from tests.models import test_contract_suite as suite

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "triton.md").read_text()
BLOCKS = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
RUNS = {
    "queries.sh": ["bash"],
    "queries_http.py": [sys.executable],
    "queries_grpc.py": [sys.executable],
    "queries.mjs": ["node"],
}
QUESTION = {
    **{"user_history": ["v4"], "user_query": [""], "video_id": ["v0"], "title": ["Film 0"]},
    **{"genres": ["Comedy"], "video_query": [""], "blocked": [""]},
}
tiny_log, known_example = suite.tiny_log, suite.known_example  # its fixtures


def _stated(model: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """The tensors in a model's tables, inputs first."""
    (section,) = re.findall(rf"^## `{model}`\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \[([-\d, ]+)\] \| .+ \|$", section, re.MULTILINE)
    return [(name, dtype, tuple(map(int, dims.split(",")))) for name, dtype, dims in rows]


@pytest.mark.parametrize("model", REGISTRY)
def test_the_page_states_every_tensor_of_every_model(model: str) -> None:
    signature = REGISTRY[model].load_signature()
    specs = (*signature.inputs, *signature.outputs)
    assert _stated(model) == [(spec.name, spec.dtype, spec.shape) for spec in specs]


def _served(name: str, log: TrainingLog, server: Triton, folder: Path) -> Iterator[Bundle]:
    bundle = suite._trained(REGISTRY[name], log, ReleaseStore(folder))
    client, repository = TritonClient(server.grpc_address), ModelRepository(server.repository)
    repository.keep_only(name, ())
    repository.add(bundle)
    client.load(name)
    yield bundle
    repository.keep_only(name, ())
    client.close()


@pytest.fixture(scope="module")
def queries(
    tiny_log: TrainingLog, triton_server: Triton, tmp_path_factory: Any
) -> Iterator[Bundle]:
    yield from _served("queries", tiny_log, triton_server, tmp_path_factory.mktemp("queries"))


@pytest.fixture(scope="module")
def ranker(tiny_log: TrainingLog, triton_server: Triton, tmp_path_factory: Any) -> Iterator[Bundle]:
    yield from _served("ranker", tiny_log, triton_server, tmp_path_factory.mktemp("ranker"))


@pytest.mark.parametrize("name", RUNS)
def test_each_client_on_the_page_gets_tritons_answer(
    name: str, queries: Bundle, triton_server: Triton, tmp_path: Path
) -> None:
    command = RUNS[name]
    needs = "curl" if name == "queries.sh" else command[0]
    if shutil.which(needs) is None:
        pytest.skip(f"{needs} is not installed")
    text = BLOCKS[name].replace("localhost:8000", triton_server.http_address)
    path = tmp_path / name
    path.write_text(text.replace("localhost:8001", triton_server.grpc_address))
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if name == "queries.sh":  # curl prints the whole answer
        found = next(t["data"] for t in found["outputs"] if t["name"] == "query")
    tensors = {key: np.array([t.encode() for t in v], object) for key, v in QUESTION.items()}
    client = TritonClient(triton_server.grpc_address)
    asked = tensors | {"k": np.array([2], np.int64)}
    right = client.infer("queries", asked, version=queries.version, timeout_s=30.0)
    client.close()
    assert found == text_list(right["query"])
    assert len(found) == 2


def test_items_are_ranked_without_the_gateway_as_the_gateway_ranks_them(
    ranker: Bundle,
    tiny_log: TrainingLog,
    known_example: ServingExample,
    triton_server: Triton,
    valkey: str,
    tmp_path: Path,
) -> None:
    now_ms, items = tiny_log.until_ms, known_example.items[:15]
    log = CatalogueLog(tmp_path / "log")
    log.append(
        CATALOGUE_EVENT.validate_python(
            {
                **{"kind": "item_added", "event_id": f"a{n}", "event_time_ms": now_ms},
                "item": item.model_dump(),
            }
        )
        for n, item in enumerate(items)
    )
    store = open_store(registry_path=tmp_path / "registry.db", address=valkey, db=7, project="rank")
    kinds = tiny_log.events["kind"].replace_strict(KIND_CODE, return_dtype=suite.pl.UInt8)
    table = tiny_log.events.with_columns(kind=kinds).to_arrow()
    events = table.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
    for entity in ("user", "video", "author"):
        store.fold(entity, events, Stamp("log", 0, 0))
    ids = [item.item_id for item in items]
    command = [sys.executable, str(ROOT / "docs/examples/rank_without_gateway.py"), "u0", *ids]
    options = {"home": tmp_path, "store": valkey, "db": 7, "project": "rank", "now-ms": now_ms}
    options["triton"] = triton_server.http_address
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]

    query = Query(
        "r", "feed", "u0", len(ids), now_ms, 0, release=Release("r", {"ranker": ranker.version})
    )
    query = suite.replace(query, user=store.read("user", ["u0"], now_ms), explore=False)
    pool = Pool.of([Candidate(item.item_id, "given", item=item) for item in items])
    pool = suite.replace(
        pool,
        item_features=store.read("video", ids, now_ms),
        author_features=store.read("author", [i.author_id or "" for i in items], now_ms),
    )
    client = TritonClient(triton_server.grpc_address)
    popularity = cast(PopularityCache, None)  # not asked: the pool has its features
    stage = Ranker(client, LiveCatalogue(log.load()), popularity, timeout_s=30.0)
    right = stage.score(query, pool)
    client.close()
    store.tear_down()
    order = np.argsort(-right.score, kind="stable").tolist()
    assert [each["item_id"] for each in found] == [ids[row] for row in order]
    np.testing.assert_allclose([e["score"] for e in found], right.score[order], atol=1e-5)
    np.testing.assert_allclose([[*e["p"].values()] for e in found], right.p[order], atol=1e-5)
    assert [*found[0]["p"]] == list(right.tasks)
    assert len({e["score"] for e in found}) > 1
