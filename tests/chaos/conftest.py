"""A Kafka and a Valkey that may be killed, a world on them, and the seed of what is done to it.

TIDEMILL_SEED repeats a run; TIDEMILL_CHAOS_ROUNDS (1) makes it that many times as long.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.services.process import PartUnavailable

sys.path.insert(0, str(Path(__file__).parent))  # the suite's own modules, chaos_*.py

from chaos_servers import Servers
from chaos_stream import Stream, stream
from chaos_verdict import Verdict
from chaos_world import World


@pytest.fixture(scope="session")
def rounds() -> int:
    return int(os.environ.get("TIDEMILL_CHAOS_ROUNDS", "1"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    try:
        started = Servers.started(tmp_path_factory.mktemp("servers"))
    except PartUnavailable as reason:
        pytest.skip(str(reason))
    yield started
    started.stop()


@pytest.fixture
def seed() -> int:
    """Named in the captured output of a law that fails."""
    drawn = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"TIDEMILL_SEED={drawn}")
    return drawn


@pytest.fixture
def doors() -> int:
    return 1


@pytest.fixture
def world(servers: Servers, seed: int, doors: int, tmp_path: Path) -> Iterator[World]:
    servers.empty()
    made = World(servers, tmp_path, random.Random(seed), doors=doors)
    yield made
    made.end()
    print("\n".join(made.story))


@pytest.fixture
def draw(world: World) -> Callable[[int], Stream]:
    """A stream of so many events from the world's seed."""
    return lambda events: stream(world.rng, events)


@pytest.fixture
def verdict() -> type[Verdict]:
    return Verdict
