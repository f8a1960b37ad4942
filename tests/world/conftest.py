"""The world's data and its seed-0 history, read once a session."""

from __future__ import annotations

import pytest

from deploy.simulation.config import WorldConfig
from deploy.simulation.history import History, history
from deploy.simulation.movielens import DataUnavailable, MovieLens, drawn_share, load
from deploy.simulation.people import People, people


@pytest.fixture(scope="session")
def world() -> WorldConfig:
    return WorldConfig.load()


@pytest.fixture(scope="session")
def data() -> MovieLens:
    try:
        return load()
    except DataUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def crowd(data: MovieLens, world: WorldConfig) -> People:
    return people(data, world, 0)


@pytest.fixture(scope="session")
def replayed(data: MovieLens, world: WorldConfig) -> MovieLens:
    """The ratings that the seed-0 history replays."""
    return drawn_share(data, world.replay.share, 0)


@pytest.fixture(scope="session")
def past(data: MovieLens, world: WorldConfig, crowd: People) -> History:
    return history(0, world=world, data=data, crowd=crowd)
