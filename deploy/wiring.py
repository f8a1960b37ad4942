"""From settings to the packages' own objects: clock, bus, ingest, store, models.

Knows which class implements which contract under which setting. Imports inside functions, so
that a process loads only what it uses. Starts nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import state
from deploy.settings import TASKS, ClockSettings, Settings, SettingsError

if TYPE_CHECKING:
    from features.feast.registry import RegisteredFeatureStore
    from features.online.connection import StoreLogin
    from models.client import ModelClient
    from models.experiments.store import ExperimentStore
    from models.recipe import TrainingLog
    from models.release.promotion import Promoter
    from models.release.store import Manifest
    from serving.clients.shared_replies import SharedReplies
    from streams.bus.kafka.bus import KafkaBus
    from streams.bus.kafka.login import KafkaLogin
    from streams.contract.clock import Clock
    from streams.contract.topics import OwnEntity
    from streams.ingest.loop import IngestConfig


def declare(settings: Settings) -> None:
    """Puts what the settings declare in force in this process: attributes, signals, features.

    Raises:
        SettingsError: a signal contradicts those that were declared before, or the file of
            features is wrong.
    """
    from dataclasses import replace

    from serving.registry import EVENT_SURFACES
    from streams.contract.declaration import contract, declare
    from streams.storage.signal_register import SignalConflict, register

    items, users = settings.items.declarations(), settings.users.declarations()
    try:
        signals = register(settings.log_dir, settings.signals, user_attributes=bool(users.declared))
    except SignalConflict as conflict:
        raise SettingsError(str(conflict)) from conflict
    across = tuple(settings.feedback.across_items)
    if unknown := sorted({*across} - {*TASKS, *signals.windows_ms}):
        raise SettingsError(f"feedback.across_items: {unknown[0]!r} is no task nor declared signal")
    declared = replace(contract(), items=items, users=users, signals=signals)
    declare(replace(declared, across_items=across, surfaces=EVENT_SURFACES))
    if settings.features.file is not None:
        _add_features(settings.features.file)


def record_declaration(settings: Settings) -> None:
    """Writes the declaration in force beside the log, for readers without a stack.

    Called by those that write there, not by every command: `declared_change` compares with it.
    """
    from features.stored_declaration import declaration_in_force, write_declaration

    write_declaration(settings.log_dir, declaration_in_force())


def declared_change(settings: Settings) -> str:
    """What the declaration in force changes against the recorded one, and what that costs, as one
    line; "" where it changes nothing."""
    from features.stored_declaration import (
        UnreadableDeclaration,
        declaration_in_force,
        read_declaration,
    )

    after = declaration_in_force()
    try:
        before = read_declaration(settings.log_dir)
    except UnreadableDeclaration as error:
        return str(error)
    if before.declares_nothing and after.declares_nothing:
        return ""
    from features.offline import declared_change

    if not (change := declared_change.compared(before, after)):
        return ""
    if not change.rebuilt:
        return f"the declaration changed: {change}; no row is rebuilt"
    cost = str(declared_change.rebuild_cost(settings.log_dir, before, after))
    if topics := declared_change.topics_line(change, settings.broker.partitions):
        cost += f"; {topics}"
    if settings.store.kind == "external":
        cost += "; start it with `tidemill features backfill --rebuild`"
    return f"the declaration changed: {change}; {cost}"


def _add_features(path: Path) -> None:
    """Runs the owner's file; its FEATURES maps an entity to counts, sums and lists."""
    import runpy

    from features.definitions import DEFINITIONS

    try:
        found = runpy.run_path(str(path))["FEATURES"]
        DEFINITIONS.add({entity: tuple(features) for entity, features in found.items()})
    except Exception as error:  # the file may raise anything
        why = str(error) if isinstance(error, ValueError) else repr(error)
        raise SettingsError(f"{path} (features.file): {why}") from error


def refuse_contradictions(settings: Settings) -> None:
    """Compares the declared attributes with the items of the catalogue's log.

    Raises:
        SettingsError: stored items hold values that do not fit; the message names one of each.
    """
    declarations = settings.items.declarations()
    if not declarations.declared:
        return
    from streams.catalogue import CatalogueLog  # with polars: 17 MB

    found = CatalogueLog(settings.log_dir).load().contradictions(declarations)
    if problems := [
        f"items.attributes.{name} does not fit {count} stored items, such as {example}"
        for name, (count, example) in sorted(found.items())
    ]:
        fix = (
            "declare another name, or start without the declaration, put those items again with "
            "values that fit, and then declare it"
        )
        raise SettingsError("\n".join([*problems, fix]))


def clock(settings: ClockSettings) -> Clock:
    """The stack's clock; all processes of a stack build the same one."""
    from streams.contract.clock import AcceleratedClock, WallClock

    if settings.rate == 1.0 and settings.origin_ms == settings.origin_wall_ms:
        return WallClock()
    return AcceleratedClock(settings.origin_wall_ms, settings.origin_ms, settings.rate)


def latest_ms(settings: Settings) -> Callable[[], int]:
    """The largest time that a message of any topic may state now."""
    from functools import partial

    from streams.contract.bounds import future_limit_ms

    return partial(future_limit_ms, clock(settings.clock), settings.admission.future_ms)


def bus(settings: Settings, *, ensure_topics: bool = False) -> KafkaBus:
    """The broker's client; `ensure_topics` creates missing topics."""
    from streams.bus.kafka.bus import KafkaBus
    from streams.contract.topics import topic_specs

    client = KafkaBus(settings.broker.bootstrap_servers, login=kafka_login(settings))
    if ensure_topics:
        own = [entity.name for entity in own_entities()]
        client.ensure_topics(topic_specs(settings.broker.partitions, own))
    return client


def kafka_login(settings: Settings) -> KafkaLogin:
    """How this stack's clients log in to the broker."""
    from streams.bus.kafka.login import KafkaLogin

    return KafkaLogin(**settings.broker.security.values())


def own_entities() -> tuple[OwnEntity, ...]:
    """The owner's entities in force, which have topics of their own."""
    from features.definitions import DEFINITIONS
    from streams.contract.topics import OwnEntity

    return tuple(
        OwnEntity(definition.name, definition.id_column, definition.kinds)
        for definition in DEFINITIONS.values()
        if definition.kinds is not None
    )


def ingest_config(settings: Settings) -> IngestConfig:
    from streams.ingest.admission import AdmissionLimits
    from streams.ingest.loop import IngestConfig

    return IngestConfig(
        limits=AdmissionLimits(**settings.admission.model_dump()),
        transactional=settings.broker.transactional,
        instance=settings.instance or "0",
        replicas=settings.ingest.replicas,
        own_entities=own_entities(),
    )


def feature_store(settings: Settings, *, cached_rows: int = 0) -> RegisteredFeatureStore:
    """The online store. Folding processes give `cached_rows`."""
    from features.feast.registry import open_store

    return open_store(
        registry_path=settings.registry_path,
        address=settings.store.address,
        db=settings.store.db,
        cached_rows=cached_rows,
        login=store_login(settings),
    )


def store_login(settings: Settings) -> StoreLogin:
    """How this stack's clients log in to the online store."""
    from features.online.connection import StoreLogin

    return StoreLogin(**settings.store.security.values())


def shared_replies(settings: Settings) -> SharedReplies:
    """The replies that all processes share, beside the features in the online store."""
    from features.online.connection import Connection
    from serving.clients.shared_replies import TIMEOUT_S, SharedReplies

    store = settings.store
    connection = Connection(store.address, store.db, TIMEOUT_S, store_login(settings))
    return SharedReplies(connection, impression_key(settings))


def training_log(settings: Settings) -> TrainingLog:
    """What a training learns from: all up to now, without feedback of rolled-back releases and
    without blocked queries."""
    from models.release.store import ReleaseStore
    from models.training.datasets import load_training_log

    return load_training_log(
        settings.log_dir,
        settings.feedback_dir,
        clock(settings.clock).now_ms(),
        ReleaseStore(settings.releases_dir).quarantined(),
        blocked_queries(settings),
    )


@contextmanager
def promoter(settings: Settings, *, running: bool | None = None) -> Iterator[Promoter]:
    """Makes releases live on the stack's model server and announces them; without a running stack
    in this process, unannounced. `running`: None asks the home."""
    from models.release.in_process import InProcessClient
    from models.release.promotion import Promoter, announcement
    from models.release.store import ReleaseStore
    from models.release.triton_repository import ModelRepository

    runs = state.home_is_locked(settings.home) if running is None else running
    client = model_client(settings) if runs else InProcessClient(settings.repository_dir)
    producer = bus(settings).producer() if runs else None

    def announce(release: Manifest) -> None:
        if producer is not None:
            producer.send([announcement(release)])

    repository = ModelRepository(settings.repository_dir)
    try:
        store, beside = ReleaseStore(settings.releases_dir), experiments(settings).releases
        yield Promoter(store, repository, client, announce, beside)
    finally:
        if producer is not None:
            producer.close()


def blocked_queries(settings: Settings) -> tuple[str, ...]:
    """The queries that are taken down."""
    from serving.state.blocked_queries import BlockedQueries

    return BlockedQueries(settings.blocked_queries_path).texts()


def experiments(settings: Settings) -> ExperimentStore:
    """The experiments of the stack, with the settings' own and the holdout."""
    from models.experiments.definition import popularity_experiment
    from models.experiments.store import ExperimentStore

    stated = settings.experiment
    configured = popularity_experiment(stated.popularity_share, stated.name)
    return ExperimentStore(settings.experiments_path, configured, stated.holdout_share)


def impression_key(settings: Settings) -> bytes:
    """The key that signs impressions, of the settings or created by the stack."""
    key = settings.security.impression_key
    if len(key) < 32:
        raise ValueError(
            "security.impression_key is not set: give 64 hex digits in "
            "TIDEMILL_SECURITY__IMPRESSION_KEY (openssl rand -hex 32), the same for every process"
        )
    return bytes.fromhex(key)


def fill_repository(settings: Settings) -> None:
    """Puts the self-test model and the live release into the model repository."""
    from models.release.promotion import Promoter
    from models.release.store import ReleaseStore
    from models.release.triton_repository import ModelRepository

    settings.repository_dir.mkdir(parents=True, exist_ok=True)
    repository = ModelRepository(settings.repository_dir)
    repository.add_echo()
    store = ReleaseStore(settings.releases_dir)
    client, beside = model_client(settings), experiments(settings).releases
    Promoter(store, repository, client, _no_announcement, beside).restore()


def echo_answers(grpc_address: str) -> bool:
    """Whether the self-test model returns tensors bit for bit; False while it does not answer.

    Raises:
        SystemError: it answered with other tensors than were sent.
    """
    from models.client import ModelUnavailable
    from models.echo import echo_matches, probe_tensors
    from serving.clients.triton import TritonClient

    client = TritonClient(grpc_address)
    sent = probe_tensors(os.getpid())
    try:
        received = client.infer("echo", sent, timeout_s=2.0)
    except ModelUnavailable:
        return False
    finally:
        client.close()
    if not echo_matches(sent, received):
        raise SystemError(
            "Triton returned other tensors than were sent: its backend has the wrong numpy; delete "
            "the folder .cache/triton and start again"
        )
    return True


def model_client(settings: Settings) -> ModelClient:
    """The client of the model server: Triton, or models in this process."""
    if settings.triton.kind == "in_process":
        from models.release.in_process import InProcessClient

        client = InProcessClient(settings.repository_dir)
        client.load_all()
        return client
    from serving.clients.triton import TritonClient

    return TritonClient(settings.triton.grpc_address)


def reload_model(settings: Settings, model: str, changed: Path) -> bool:
    """Loads a model again whose process was killed; False where another process does so.

    `changed`: its version's model.py. A newer one makes the server start new processes beside the
    dead one; to unload it first would wait for every call to it, which fails after a second each.

    Raises:
        ModelUnavailable: it does not load.
    """
    from models.release.store import ReleaseStore

    with ReleaseStore(settings.releases_dir).repair_lock(model, time.time()) as mine:
        if mine:
            os.utime(changed)
            model_client(settings).load(model)
        return mine


def follow_repository(models: ModelClient, stop: threading.Event, every_s: float = 1.0) -> None:
    """Loads releases that other processes promote, until `stop`; only for models in this process."""
    from models.release.in_process import InProcessClient

    while isinstance(models, InProcessClient) and not stop.wait(every_s):
        models.load_all()


def _no_announcement(_: object) -> None:
    """Restoring the live release changes nothing for consumers."""
