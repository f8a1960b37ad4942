"""Chromium against a gateway on a real port, with everything behind it in memory."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from features.memory_store import MemoryFeatureStore
from models.alignment.gate import GateResult
from models.alignment.off_policy import Estimate
from models.recipe import Evaluation
from models.release.store import Manifest
from serving.fakes import FakeModelClient
from serving.gateway import GatewayConfig, GatewayDependencies
from serving.http.app import create_app
from streams.bus.memory import MemoryBus
from streams.contract.clock import WallClock
from streams.contract.topics import topic_specs

expect.set_options(timeout=30_000)  # as `wait_for_selector`: a busy machine is slow


# What `models.training.update_report.update_reports` tells of two models.
UPDATES: dict[str, dict[str, Any]] = {
    "ranker": {
        "phase": "waiting",
        "why": "no feedback has matured since the last attempt",
        "next_due_ms": 1_790_000_000_000,
        "last": {"number": 3, "since_ms": 1, "until_ms": 2, "impressions": 4_321, "incumbent": 1}
        | {"started_ms": 2, "ending": "promoted", "version": 1, "release": "r0002", "reasons": []},
    },
    "queries": {
        "phase": "not scheduled",
        "why": "",
        "next_due_ms": None,
        "last": {"number": 1, "since_ms": 1, "until_ms": 2, "impressions": 9, "incumbent": 1}
        | {"started_ms": 1, "ending": "waiting", "version": 0, "release": ""}
        | {"reasons": ["9 clicks on queries, 50 needed"]},
    },
}


def passed_gate() -> GateResult:
    gauc = Evaluation("GAUC of feedback", 0.62, "incumbent", 0.61, (0.012, 0.004, 0.02), 40)
    estimate = Estimate("SNIPS", 0.31, 0.3, (0.01, -0.02, 0.04), 180.0)
    reason = "GAUC 0.6200 against 0.6100 (difference +0.0120 [+0.0040, +0.0200]) on 90 later slates"
    return GateResult(True, (reason,), gauc, estimate, estimate, 90)


def _serving_conftest() -> Any:
    """tests/serving/conftest.py, loaded by path because the test folders are not packages."""
    name = "tidemill_tests_serving_conftest"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "serving" / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def page(chromium: Browser, serve: Callable[..., str]) -> Iterator[Page]:
    """A page that fails its test on any console error. It closes before the gateway."""
    del serve
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def serve(free_port: int) -> Iterator[Callable[..., str]]:
    """`serve(fold=True)` -> the gateway's address. With `fold=False` the store is never written;
    other names are settings of the gateway."""
    stop, running = threading.Event(), []
    threads: list[threading.Thread] = []

    def start(*, fold: bool = True, history: bool = True, **settings: Any) -> str:
        memory = _serving_conftest()
        bus, store = MemoryBus(), MemoryFeatureStore()
        bus.ensure_topics(topic_specs(2))
        versions = dict.fromkeys(("ranker", "queries", "reactivation"), 1)
        gate = {"model": "ranker", "since_ms": 1, "until_ms": 2, **passed_gate().as_dict()}
        releases = memory.MemoryReleases(
            [Manifest("r0001", versions, 1), Manifest("r0002", versions, 2, "r0001", gate)]
        )
        deps = GatewayDependencies(
            bus=bus,
            store=store,
            models=FakeModelClient(),
            catalogue=memory.catalogue_of(memory.items()),
            clock=WallClock(),
            config=GatewayConfig(impression_key=memory.KEY, popularity_every_s=60.0, **settings),
            releases=releases,
            updates=lambda: UPDATES,
        )
        threads.extend(memory.start_streams(bus, store, stop, fold=fold))
        if history:
            memory.write_history(bus)
            time.sleep(0.5)
        config = uvicorn.Config(
            create_app(deps),
            "127.0.0.1",
            free_port,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{free_port}/"

    yield start
    stop.set()
    for server, thread in running:
        server.should_exit = True
        thread.join(10.0)
    for thread in threads:
        thread.join(5.0)
