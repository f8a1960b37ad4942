"""From settings to the packages' own objects: clock, bus, store, models, limits.

Knows which class implements which contract under which setting. Imports inside
functions, so that a process loads only what it uses. Starts nothing.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from deploy.settings import ClockSettings, Settings

if TYPE_CHECKING:
    from features.feast.registry import RegisteredFeatureStore
    from models.client import ModelClient
    from streams.bus.kafka.bus import KafkaBus
    from streams.contract.clock import Clock
    from streams.ingest.admission import AdmissionLimits


def clock(settings: ClockSettings) -> Clock:
    """The stack's clock; all processes of a stack build the same one."""
    from streams.contract.clock import AcceleratedClock, WallClock

    if settings.rate == 1.0 and settings.origin_ms == settings.origin_wall_ms:
        return WallClock()
    return AcceleratedClock(settings.origin_wall_ms, settings.origin_ms, settings.rate)


def bus(settings: Settings, *, ensure_topics: bool = False) -> KafkaBus:
    """The broker's client; with `ensure_topics` what topics are missing are made."""
    from streams.bus.kafka.bus import KafkaBus
    from streams.contract.topics import topic_specs

    made = KafkaBus(settings.broker.bootstrap_servers)
    if ensure_topics:
        made.ensure_topics(topic_specs(settings.broker.partitions))
    return made


def limits(settings: Settings) -> AdmissionLimits:
    from streams.ingest.admission import AdmissionLimits

    return AdmissionLimits(**settings.admission.model_dump())


def feature_store(settings: Settings, *, cached_rows: int = 0) -> RegisteredFeatureStore:
    """The online store. Folding processes give `cached_rows`."""
    from features.feast.registry import open_store

    return open_store(
        registry_path=settings.registry_path,
        address=settings.store.address,
        db=settings.store.db,
        cached_rows=cached_rows,
    )


def impression_key(settings: Settings) -> bytes:
    """The key that signs impressions; the stack made one unless the settings name it."""
    key = settings.security.impression_key
    if len(key) < 32:
        raise ValueError(
            "security.impression_key is not set: give 64 hex digits in "
            "TIDEMILL_SECURITY__IMPRESSION_KEY (openssl rand -hex 32), the same to every process"
        )
    return bytes.fromhex(key)


def fill_repository(settings: Settings) -> None:
    """Puts the self-test model and the live release into the model repository."""
    from models.release.bundle import ReleaseStore
    from models.release.promotion import Promoter
    from models.release.triton_repository import ModelRepository

    settings.repository_dir.mkdir(parents=True, exist_ok=True)
    repository = ModelRepository(settings.repository_dir)
    repository.add_echo()
    store = ReleaseStore(settings.releases_dir)
    Promoter(store, repository, model_client(settings), _tell_nobody).restore()


def echo_answers(grpc_address: str) -> bool:
    """Whether the self-test model gives tensors back bit for bit; False while it is not up.

    Raises:
        SystemError: it answers, and the tensors are not what was sent.
    """
    from models.client import ModelUnavailable
    from models.echo import came_back, probe
    from serving.clients.triton import TritonClient

    client = TritonClient(grpc_address)
    sent = probe(os.getpid())
    try:
        received = client.infer("echo", sent, timeout_s=2.0)
    except ModelUnavailable:
        return False
    finally:
        client.close()
    if not came_back(sent, received):
        raise SystemError(
            "Triton changes tensors on their way: its backend's numpy does not fit; delete the "
            "folder .cache/triton and start again"
        )
    return True


def model_client(settings: Settings) -> ModelClient:
    """The client of the settings' model server: Triton, or models in this process."""
    if settings.triton.kind == "in_process":
        from models.release.in_process import InProcessClient

        client = InProcessClient(settings.repository_dir)
        client.load_all()
        return client
    from serving.clients.triton import TritonClient

    return TritonClient(settings.triton.grpc_address)


def follow_repository(models: ModelClient, stop: threading.Event, every_s: float = 1.0) -> None:
    """Loads what other processes promote; for models in this process only, until `stop`."""
    from models.release.in_process import InProcessClient

    while isinstance(models, InProcessClient) and not stop.wait(every_s):
        models.load_all()


def making_a_release(settings: Settings) -> AbstractContextManager[None]:
    """One at a time: a release is made from the live one, so two must not be made at once."""
    from deploy.services.cache import locked

    return locked(settings.releases_dir / ".making")


def _tell_nobody(_: object) -> None:
    """Restoring what was live already is no news."""
