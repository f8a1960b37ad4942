"""The stack's own processes: `python -m deploy.process batcher|facts|features|gateway|edge`.

Knows which packages' loops run in which process and under which settings. Does not
know who starts it: the laptop's stack gives `--home` (the settings are then those of
its `stack.json`), a container gives everything by environment.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import state, wiring
from deploy.running import Process
from deploy.settings import INSTANCE, Settings, SettingsError, load

if TYPE_CHECKING:
    from collections import Counter

    from features.feast.registry import RegisteredFeatureStore
    from features.store import EntityName
    from serving.gateway import Dependencies
    from streams.bus.kafka.bus import KafkaBus
    from streams.feedback.join import Refusal

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ERASURES_FILE = "erasures.jsonl"  # in the log's folder
COMBINED_BYTES = 10_000_000  # of queued messages that are handled as one batch
BEHIND_S = 2.0  # how long a partition that is late already waits for more, at most
REGISTRY_AFTER_S = 10.0  # a worker is set up, where Feast's registry is there already
FACTS_PACE_S = 0.5  # nobody waits for a fact to be on disk, and a batch has its cost
CACHED_ROWS = 100_000  # rows of an entity that a folding process keeps, about 2 kB each

_log = logging.getLogger("tidemill")


def batcher(process: Process) -> int:
    """The one door: behaviour → admitted → in the user's order, and per entity."""
    from streams.codec.json import warm
    from streams.erasure import KeptErasures
    from streams.event_log import EventLog
    from streams.ingest.service import run

    bus = wiring.bus(process.settings, ensure_topics=True)
    KeptErasures(process.settings.log_dir / ERASURES_FILE).restore(bus)
    warm()
    process.ready()
    run(
        bus,
        clock=wiring.clock(process.settings.clock),
        limits=wiring.limits(process.settings),
        stop=process.stop,
        transactional=process.settings.broker.transactional,
        instance=process.settings.instance or "0",
        doors=process.settings.broker.doors,
        log=EventLog(process.settings.log_dir),
    )
    return 0 if process.stop.is_set() else 1


def facts(process: Process) -> int:
    """What happened, to disk: the event log, feedback, the catalogue's log."""
    from streams import erasure
    from streams.bus.delivery import in_order
    from streams.catalogue import CatalogueLog, follow
    from streams.contract.topics import EVENTS_BY_USER
    from streams.event_log import EventLog
    from streams.feedback.store import FeedbackStore
    from streams.storage import compaction as upkeep
    from streams.workers.worker import Rounds, run_worker

    settings = process.settings
    bus = wiring.bus(settings, ensure_topics=True)
    log = EventLog(settings.log_dir)
    feedback = FeedbackStore(
        settings.feedback_dir,
        key=wiring.impression_key(settings),
        windows_ms=settings.feedback.windows_ms,
        producer=bus.producer(),
        refused=_count_refused,
    )
    catalogue = CatalogueLog(settings.log_dir)
    kept = erasure.KeptErasures(settings.log_dir / ERASURES_FILE)
    process.beside(
        "catalogue", lambda: follow(bus, catalogue.append, process.stop, group="catalogue-log")
    )
    process.beside(
        "erasures",
        lambda: erasure.follow(
            bus, [kept.keep, log.erase, feedback.erase], process.stop, group="fact-erasures"
        ),
    )
    process.beside(
        "upkeep",
        lambda: upkeep.keep(
            [log.segments, feedback.segments],
            wiring.clock(settings.clock),
            process.stop,
            retention_days=settings.log.retention_days,
        ),
    )
    return run_worker(
        "facts",
        {EVENTS_BY_USER: in_order(log.append, feedback.join)},
        bootstrap_servers=settings.broker.bootstrap_servers,
        data_dir=settings.home / "faust",
        stop=process.stop,
        ready=process.ready,
        instance_id=process.member,
        rounds=Rounds(COMBINED_BYTES, FACTS_PACE_S, BEHIND_S),
    )


def _count_refused(refused: Counter[Refusal]) -> None:
    from streams.telemetry import FEEDBACK_REFUSED

    for cause, count in refused.items():
        FEEDBACK_REFUSED.labels(str(cause)).inc(count)


def features(process: Process) -> int:
    """Folds of every entity into the online store."""
    from features.live.worker import consumer_group, fold_delivery, folded_schema
    from features.store import StoreDown
    from streams import erasure
    from streams.workers.worker import Rounds, run_worker

    settings = process.settings
    clock = wiring.clock(settings.clock)
    bus = wiring.bus(settings, ensure_topics=True)
    store = wiring.feature_store(settings, cached_rows=CACHED_ROWS)
    _rebuild(process, bus, store)
    handlers = {t: fold_delivery(store, e, clock=clock) for e, t in _entity_topics()}
    group = consumer_group("features", store.generation())
    set_up = threading.Event()

    def ready() -> None:
        set_up.set()
        process.ready()

    process.beside("registry", lambda: _register(process, store, set_up))
    process.beside("generation", lambda: store.await_change(process.stop))
    # A store that was emptied has lost its tombstones too: a group per generation reads them anew.
    forgetting = consumer_group("feature-erasures", store.generation())
    process.beside(
        "erasures",
        lambda: erasure.follow(
            bus, [store.erase], process.stop, group=forgetting, wait_on=(StoreDown,)
        ),
    )
    return run_worker(
        group,
        handlers,
        bootstrap_servers=settings.broker.bootstrap_servers,
        data_dir=settings.home / "faust",
        stop=process.stop,
        ready=ready,
        instance_id=process.member,
        rounds=Rounds(COMBINED_BYTES, behind_s=BEHIND_S, across=True),
        resting=[topic for entity, topic in _entity_topics() if entity != "user"],
        schemas={topic: folded_schema(entity) for entity, topic in _entity_topics()},
    )


def _register(process: Process, store: RegisteredFeatureStore, set_up: threading.Event) -> None:
    """Writes the declarations into Feast's registry, at once where there is none yet.

    A process that is started again folds what has queued first: Feast's import takes seconds
    of the interpreter that the folds need.
    """
    if store.registry_path.exists():
        set_up.wait()
        if process.stop.wait(REGISTRY_AFTER_S):
            return
    store.apply()


def _rebuild(process: Process, bus: KafkaBus, store: RegisteredFeatureStore) -> None:
    """The store is a cache of the log: what it has lost comes back before folding goes on."""
    from features.offline.backfill import Live, ensure_whole
    from streams.event_log import EventLog

    live = Live(
        process.settings.broker.partitions,
        {entity: bus.epoch(topic) for entity, topic in _entity_topics()},
    )
    report = ensure_whole(
        process.settings.log_dir,
        store,
        live,
        progress=lambda share, what: _log.info(
            "rebuilding features: %.0f %%, %s", 100 * share, what
        ),
    )
    if report is not None:
        begins = EventLog(process.settings.log_dir).begins_at_ms()
        since = "whole" if begins is None else f"it begins at {begins} ms"
        _log.info("features rebuilt from %s events of the log (%s)", f"{report.events:,}", since)


def _entity_topics() -> list[tuple[EntityName, str]]:
    from features.definitions import DEFINITIONS
    from streams.contract.topics import ENTITY_TOPIC

    return [(entity, ENTITY_TOPIC[entity]) for entity in DEFINITIONS]


def gateway(process: Process) -> int:
    """HTTP: answers, events, the page."""
    import uvicorn

    from serving.http.app import create_app

    deps = _dependencies(process)
    config = uvicorn.Config(
        create_app(deps),
        host=process.settings.gateway.host,
        port=process.settings.gateway.port,
        log_level="warning",
        timeout_graceful_shutdown=3,  # open event streams must not hold up a stop
    )
    process.ready()
    uvicorn.Server(config).run()
    return 0 if process.stop.is_set() else 1


def edge(process: Process) -> int:
    """The same answers to requests that come over the broker."""
    from serving import kafka_requests as requests_edge
    from serving.gateway import Gateway

    deps = _dependencies(process)
    parts = Gateway(deps)
    parts.start()
    process.ready()
    try:
        requests_edge.run(
            deps.bus, parts.surfaces, process.stop, impression_key=deps.impression_key
        )
    finally:
        parts.stop()
    return 0 if process.stop.is_set() else 1


def _dependencies(process: Process) -> Dependencies:
    from models.release.bundle import ReleaseStore
    from serving.gateway import Dependencies
    from serving.stages.caps import caps_of
    from streams.catalogue import CatalogueLog

    settings = process.settings
    models = wiring.model_client(settings)
    if settings.triton.kind == "in_process":
        process.beside("models", lambda: wiring.follow_repository(models, process.stop))
    return Dependencies(
        bus=wiring.bus(settings, ensure_topics=True),
        store=wiring.feature_store(settings),
        models=models,
        catalogue=CatalogueLog(settings.log_dir).load(),
        clock=wiring.clock(settings.clock),
        impression_key=wiring.impression_key(settings),
        releases=ReleaseStore(settings.releases_dir),
        api_keys=settings.security.api_keys,
        host=settings.gateway.host,
        caps=caps_of(settings.blend.author_cap, settings.blend.provenance_caps),
        drawn_share=settings.explore.weights_share,
        state_dir=settings.home / process.name,
    )


PROCESSES: dict[str, Callable[[Process], int]] = {
    "batcher": batcher,
    "facts": facts,
    "features": features,
    "gateway": gateway,
    "edge": edge,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.process",
        description=__doc__,
        epilog="examples:\n  python -m deploy.process batcher\n"
        "  python -m deploy.process features --home .tidemill --instance 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(PROCESSES))
    parser.add_argument("--home", type=Path, help="read stack.json there, not the environment")
    parser.add_argument(
        "--instance",
        type=_instance,
        help="where several of this kind run: a name that this one keeps over restarts and shares "
        "with no other (TIDEMILL_INSTANCE)",
    )
    return parser


def _instance(text: str) -> str:
    if not re.fullmatch(INSTANCE, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {INSTANCE}")
    return text


def _settings(home: Path | None, instance: str | None, name: str) -> Settings:
    """Those of the stack in `home`, else of the environment, for one process of its kind.

    Raises:
        SettingsError: a key is wrong, or one of several doors has no name of its own.
        NotRunning: no stack runs in `home`.
    """
    settings = state.read_settings(home) if home else load()
    if instance is not None:
        settings = settings.model_copy(update={"instance": instance})
    if name == "batcher" and settings.broker.doors > 1 and not settings.instance:
        raise SettingsError(
            f"broker.doors is {settings.broker.doors}, and doors that share a name end each other: "
            "give each one of its own that it keeps over restarts (--instance 1, or "
            "TIDEMILL_INSTANCE=1)"
        )
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        settings = _settings(given.home, given.instance, given.name)
    except (SettingsError, state.NotRunning) as error:
        print(error, file=sys.stderr)
        return 2
    process = Process(given.name, settings)
    process.observe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop.set())
    try:
        return PROCESSES[given.name](process)
    finally:
        process.stop.set()  # also what ends by itself must not be held up on its way out


if __name__ == "__main__":
    raise SystemExit(main())
