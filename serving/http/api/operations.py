"""GET /healthz, /metrics and /v1/models: component health, metrics and releases.

Knows the gateway's monitoring. Does not know surfaces.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from models.client import ModelUnavailable
from serving.http.api.errors import KEYED
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_reply
from serving.http.auth import needs

router = APIRouter(tags=["operations"])


@router.get("/healthz", responses={503: {"description": "The gateway cannot answer."}})
def healthz(gateway: GatewayState) -> Response:
    """Status of each component. 200 while the gateway can answer requests, otherwise 503."""
    parts = gateway.health.status()
    answers = gateway.can_answer()
    down = sorted(name for name, part in parts.items() if part["status"] != "up")
    status = "ok" if not down else "degraded" if answers else "down"
    return json_reply({"status": status, "down": down, "parts": parts}, 200 if answers else 503)


@router.get("/metrics", dependencies=[Depends(needs("admin"))], responses=KEYED)
def metrics(gateway: GatewayState) -> Response:
    """Metrics in Prometheus text format, of all the gateway's workers together."""
    return Response(gateway.all_metrics_text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", dependencies=[Depends(needs("recommend"))], responses=KEYED)
def models(gateway: GatewayState) -> Response:
    """The live release, loaded model versions, the last releases with their gates, and updates."""
    release = gateway.releases.current
    history = [asdict(manifest) for manifest in gateway.releases.history()]
    loaded: dict[str, Any] = {}
    for model in sorted({*release.models, *(m for each in history for m in each["models"])}):
        try:
            loaded[model] = list(gateway.models.versions(model))
        except ModelUnavailable:
            loaded[model] = []
    return json_reply(
        {
            "release": release.release_id,
            "models": dict(release.models),
            "loaded": loaded,
            "releases": history[-20:],
            "updates": gateway.updates(),
        }
    )
