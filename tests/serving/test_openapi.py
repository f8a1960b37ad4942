"""The committed OpenAPI page is what a gateway answers."""

from __future__ import annotations

from typing import Any

import orjson

from deploy import export_schemas

_FIX = "run: python -m deploy.export_schemas"


def test_the_committed_openapi_page_is_current(harness: Any) -> None:
    stored = export_schemas.OPENAPI.read_bytes()
    assert stored == export_schemas.openapi(), _FIX
    answered = harness.client.get("/openapi.json").json()
    assert answered == orjson.loads(stored), _FIX
    assert "/v1/feed" in answered["paths"]
