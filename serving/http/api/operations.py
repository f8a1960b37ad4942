"""GET /healthz, /metrics, /v1/models: how the parts are, and what is served."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from models.client import ModelUnavailable
from serving.gateway import Gateway, gateway_of
from serving.http.api.json import json_reply
from serving.http.auth import needs

router = APIRouter(tags=["operations"])
State = Annotated[Gateway, Depends(gateway_of)]


@router.get("/healthz")
def healthz(gateway: State) -> Response:
    """200 while answers are possible, with each part up or down; 503 when none is."""
    parts = gateway.health.now()
    answers = gateway.can_answer()
    down = sorted(name for name, part in parts.items() if part["status"] != "up")
    status = "ok" if not down else "degraded" if answers else "down"
    return json_reply({"status": status, "down": down, "parts": parts}, 200 if answers else 503)


@router.get("/metrics", dependencies=[Depends(needs("admin"))])
def metrics(gateway: State) -> Response:
    """Prometheus' text form."""
    for name, part in gateway.health.now().items():
        gateway.metrics.part_up.labels(name).set(part["status"] == "up")
    gateway.metrics.skew(gateway.skew_file)
    for outcome, count in (("kept", gateway.served.kept), ("dropped", gateway.served.dropped)):
        gateway.metrics.served_kept.labels(outcome).set(count)
    return Response(gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", dependencies=[Depends(needs("recommend"))])
def models(gateway: State) -> Response:
    """The live release, what is loaded, and every release with the gate that judged it."""
    release = gateway.releases.now
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
        }
    )
