"""A Kafka and a Valkey that may be killed, a cluster on them, and the seed of its faults.

TIDEMILL_SEED repeats a run; TIDEMILL_CHAOS_ROUNDS (1) multiplies its length.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.services.process import ServiceUnavailable

sys.path.insert(0, str(Path(__file__).parent))  # the suite's own modules, chaos_*.py

from chaos_cluster import Cluster
from chaos_servers import Servers
from chaos_stream import Stream, stream
from chaos_verdict import Verdict


@pytest.fixture(scope="session")
def rounds() -> int:
    return int(os.environ.get("TIDEMILL_CHAOS_ROUNDS", "1"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    try:
        started = Servers.started(tmp_path_factory.mktemp("servers"))
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))
    yield started
    started.stop()


@pytest.fixture
def seed() -> int:
    """Printed in the output of a failing test."""
    drawn = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"TIDEMILL_SEED={drawn}")
    return drawn


@pytest.fixture
def replicas() -> int:
    return 1


@pytest.fixture
def cluster(servers: Servers, seed: int, replicas: int, tmp_path: Path) -> Iterator[Cluster]:
    servers.empty()
    made = Cluster(servers=servers, home=tmp_path, rng=random.Random(seed), replicas=replicas)
    yield made
    made.end()
    print("\n".join(made.notes))


@pytest.fixture
def draw(cluster: Cluster) -> Callable[[int], Stream]:
    """A stream of so many events from the cluster's seed."""
    return lambda events: stream(cluster.rng, events)


@pytest.fixture
def verdict() -> type[Verdict]:
    return Verdict
