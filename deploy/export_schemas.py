"""Writes the event contract into docs/schemas: `python -m deploy.export_schemas`.

Knows which messages belong to the contract: all as JSON Schema, events also as Protobuf. Does
not know the internal Arrow batches (`streams.contract.schema`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from streams.contract.events import CATALOGUE_EVENT, EVENT, Profile
from streams.contract.protobuf_schema import VERSIONS
from streams.erasure import Erasure
from streams.ingest.dead_letters import Cause

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def schemas() -> dict[str, bytes]:
    """File name -> JSON Schema (draft 2020-12, keys sorted: a change is a short diff) or .proto."""
    adapters: dict[str, TypeAdapter[Any]] = {
        "event": EVENT,
        "catalogue_event": CATALOGUE_EVENT,
        "erasure": TypeAdapter(Erasure),
        "profile": TypeAdapter(Profile),
        "dead_letter_header": TypeAdapter(Cause),
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    json = {
        f"{name}.schema.json": orjson.dumps(adapter.json_schema(), option=options)
        for name, adapter in adapters.items()
    }
    return json | {version.file: version.proto_text() for version in VERSIONS.values()}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, body in schemas().items():
        (FOLDER / name).write_bytes(body)


if __name__ == "__main__":
    main()
