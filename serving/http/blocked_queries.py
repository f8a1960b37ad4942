"""/v1/queries/blocked: GET lists the queries that are taken down, PUT blocks one, DELETE permits it.

Knows the list. Does not know how a blocked query is kept out of replies.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from serving.http.api.errors import KEYED, WRITTEN
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_reply
from serving.http.auth import needs
from streams.contract.bounds import QueryText

router = APIRouter(
    prefix="/v1/queries/blocked", tags=["operations"], dependencies=[Depends(needs("admin"))]
)


class BlockedQuery(BaseModel):
    """A query; every spelling with the same words counts as the same."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"query": "noir"}]})

    query: QueryText


@router.get("", responses=KEYED)
def blocked_queries(gateway: GatewayState) -> Response:
    """Lists the queries that are neither generated nor offered."""
    return json_reply({"blocked": list(gateway.blocked.texts())})


@router.put("", responses=WRITTEN)
def block_query(body: BlockedQuery, gateway: GatewayState) -> Response:
    """Takes a query down: from the next reply on it is neither generated nor offered."""
    return _changed(gateway, body.query, block=True)


@router.delete("", responses=WRITTEN)
def permit_query(body: BlockedQuery, gateway: GatewayState) -> Response:
    """Permits a query that was taken down."""
    return _changed(gateway, body.query, block=False)


def _changed(gateway: GatewayState, query: str, *, block: bool) -> Response:
    change = gateway.blocked.add if block else gateway.blocked.remove
    try:
        changed = change(query)
    except OSError as error:
        raise HTTPException(503, f"the list cannot be written: {error}") from error
    return json_reply({"query": query, "blocked": block, "changed": changed})
