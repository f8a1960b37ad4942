"""JSON responses through orjson; FastAPI's encoder would take half of a reply's time.

Knows bytes, status codes and the form of a problem. Does not know any route.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi.responses import Response

from streams.contract.bounds import TIME_FIELDS, time_fix


def json_bytes(value: Any) -> bytes:
    """`value` may hold numpy scalars and arrays; NaN becomes null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(json_bytes(value), status, headers)


def json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with a body that is JSON already."""
    return Response(body, status, headers, media_type="application/json")


def problem_entry(problem: Mapping[str, Any]) -> dict[str, Any]:
    """pydantic's problem with its field's path, its index in a list, and the fix of a time's unit.

    Replies never contain the input.
    """
    loc = list(problem["loc"])
    path = loc[1:] if loc and loc[0] in ("body", "query", "path") else loc
    index = path[0] if path and isinstance(path[0], int) else None
    field = ".".join(str(part) for part in (path[1:] if index is not None else path)) or "body"
    entry = {"field": field, "loc": loc, "msg": with_time_fix(problem), "type": problem["type"]}
    return entry if index is None else {"index": index, **entry}


def with_time_fix(problem: Mapping[str, Any]) -> str:
    """The problem's message; for a time with a wrong unit also how to fix it."""
    message, stated = str(problem["msg"]), problem.get("input")
    wrong_time = problem["loc"] and problem["loc"][-1] in TIME_FIELDS
    return f"{message} ({time_fix(stated)})" if wrong_time and _is_scalar(stated) else message


def _is_scalar(value: object) -> bool:
    return isinstance(value, int | float | str)
