"""The gateway of commit 3de34bd behind uvicorn, on the same history, for comparison.

Run by path, with the interpreter and in the folder of a checkout of that commit:
`python .../benchmarks/serve/baseline.py FOLDER INTERACTIONS PORT`. It trains that commit's ranker,
prints "ready" and answers. Knows that commit's modules by name, since this checkout has them no
longer.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


def of(path: str) -> Any:
    """The attribute that "module:attribute" names in that commit."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def train(folder: Path, log: Any, interactions: int, end_ms: int) -> Any:
    """The release store with the trained ranker; its repository lies beside it."""
    store = of("models.release:ReleaseStore")(folder / "releases")
    staging = store.staging("ranker")
    config = of("models.ranking.ple:Config")()
    config = of("dataclasses:replace")(config, encounters=interactions, slates=interactions)
    of("models.ranking.ple:RankerRecipe")(config).train(
        log, staging, seed=0, progress=of("models.promotion:quiet")
    )
    bundle = store.seal(
        "ranker",
        staging,
        runtime="models.ranking.runtime:RankerRuntime",
        signature=of("models.ranking.inputs:SIGNATURE"),
        created_ms=end_ms,
    )
    of("models.repository:ModelRepository")(folder / "repository").add(bundle)
    return store


def with_fakes(client: Any) -> Any:
    """The ranker of `client`, and the shipped fakes of the two generating models."""
    fakes = of("serving.fakes:FakeModelClient")()
    fake = fakes.infer

    def infer(model: str, inputs: Any, **more: Any) -> Any:
        return (client.infer if model == "ranker" else fake)(model, inputs, **more)

    fakes.infer = infer
    return fakes


def dependencies(folder: Path, interactions: int) -> tuple[Any, Any]:
    """What that gateway is built on, and the events that it has seen."""
    end_ms = time.time_ns() // 1_000_000
    past = of("deploy.world.history:history")(end_ms=end_ms)
    none = of("polars:from_arrow")(of("streams.outcomes:FEEDBACK_SCHEMA").empty_table())
    log = of("models.recipe:TrainingLog")(past.frame, past.items_frame, none, end_ms + 1)
    store = train(folder, log, interactions, end_ms)
    client = of("models.in_process:InProcessClient")(folder / "repository")
    client.load("ranker")
    manifest = of("models.release:Manifest")(
        "r0001", {"ranker": 1, "queries": 1, "reactivation": 1}, created_ms=1
    )
    store.current = lambda: manifest
    features, fold = (
        of("features.memory_store:MemoryFeatureStore")(),
        of("streams.catalogue:Catalogue")(),
    )
    bus = of("streams.memory_bus:MemoryBus")()
    bus.ensure_topics(of("streams.topics:topic_specs")(1))
    events = of("features.replay_join:event_table")(past.frame)
    for entity in of("features.definitions:DEFINITIONS"):
        features.fold(entity, events, of("streams.bus:Stamp")("replayed", 0, 0))
    added = of("streams.events:ItemAdded")
    for item in past.items:
        fold.apply(added(event_id=item.video_id, event_time_ms=item.created_ms, item=item))
    deps = of("serving.gateway_state:Dependencies")(
        bus=bus,
        store=features,
        models=with_fakes(client),
        catalogue=fold,
        clock=of("streams.clock:WallClock")(),
        impression_key=bytes(32),
        releases=store,
        drawn_share=0.1,
        watchdog_every_s=60.0,
    )
    return deps, events


def main(arguments: list[str]) -> None:
    deps, events = dependencies(Path(arguments[0]), int(arguments[1]))
    app = of("serving.gateway:create_app")(deps)

    def fill() -> dict[str, bool]:
        app.state.gateway.activity.fold(events)
        return {"filled": True}

    def cpu() -> dict[str, float]:
        return {"cpu_s": time.process_time()}

    app.add_api_route("/filled", fill, methods=["POST"])
    app.add_api_route("/cpu", cpu)
    port = int(arguments[2])
    of("uvicorn:run")(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main(sys.argv[1:])
