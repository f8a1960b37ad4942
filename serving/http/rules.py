"""/v1/rules: GET states the standing rules, PUT replaces the whole set.

Knows the set and its problems. Does not know how a rule acts (`serving.stages.rules`).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response

from serving.http.api.errors import KEYED, WRITTEN
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.rules.definitions import RuleSet, RulesRefused

router = APIRouter(prefix="/v1/rules", tags=["operations"], dependencies=[Depends(needs("admin"))])


@router.get("", responses=KEYED)
def rules(gateway: GatewayState) -> Response:
    """The standing rules in force, as they were stated."""
    return json_reply(gateway.rules.current().stated.stated())


@router.put("", responses=WRITTEN)
def replace_rules(body: RuleSet, gateway: GatewayState) -> Response:
    """Replaces all standing rules, or refuses the whole set and states every fault."""
    try:
        found = gateway.rules.replace(body.stated())
    except RulesRefused as refused:
        return json_reply({"detail": [_entry(*problem) for problem in refused.problems]}, 422)
    except OSError as error:
        raise HTTPException(503, f"the rules cannot be written: {error}") from error
    return json_reply(found.stated.stated())


def _entry(where: str, why: str) -> dict[str, Any]:
    return {"field": where, "loc": ["body", where], "msg": why, "type": "rule"}
