"""Writes docs/schemas and docs/openapi.json: `python -m deploy.export_schemas`.

Knows which messages belong to the event contract: all as JSON Schema, events also as Protobuf. The
gateway's OpenAPI page is what the shipped surfaces give. Does not know the internal Arrow batches
(`streams.contract.schema`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from features.memory_store import MemoryFeatureStore
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.events import CATALOGUE_EVENT, EVENT, Profile
from streams.contract.protobuf_schema import VERSIONS
from streams.contract.topics import topic_specs
from streams.erasure import Erasure
from streams.ingest.dead_letters import Cause

_JSON = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
OPENAPI = FOLDER.parent / "openapi.json"


def schemas() -> dict[str, bytes]:
    """File name -> JSON Schema (draft 2020-12, keys sorted: a change is a short diff) or .proto."""
    adapters: dict[str, TypeAdapter[Any]] = {
        "event": EVENT,
        "catalogue_event": CATALOGUE_EVENT,
        "erasure": TypeAdapter(Erasure),
        "profile": TypeAdapter(Profile),
        "dead_letter_header": TypeAdapter(Cause),
    }
    json = {
        f"{name}.schema.json": orjson.dumps(adapter.json_schema(), option=_JSON)
        for name, adapter in adapters.items()
    }
    return json | {version.file: version.proto_text() for version in VERSIONS.values()}


def openapi() -> bytes:
    """The OpenAPI page of a gateway, keys sorted. No gateway is started."""
    from models.release.store import ReleaseStore
    from serving.fakes import FakeModelClient
    from serving.gateway import GatewayConfig, GatewayDependencies
    from serving.http.app import create_app

    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    with tempfile.TemporaryDirectory() as folder:
        dependencies = GatewayDependencies(
            bus=bus,
            store=MemoryFeatureStore(),
            models=FakeModelClient(),
            catalogue=Catalogue(),
            clock=WallClock(),
            config=GatewayConfig(impression_key=bytes(range(32))),
            releases=ReleaseStore(Path(folder)),
        )
        return orjson.dumps(create_app(dependencies).openapi(), option=_JSON)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    OPENAPI.write_bytes(openapi())
    for name, body in schemas().items():
        (FOLDER / name).write_bytes(body)


if __name__ == "__main__":
    main()
