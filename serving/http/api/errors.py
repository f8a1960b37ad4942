"""What errors look like, for the OpenAPI page.

Knows status codes and the form of their bodies. Does not know when they are answered.
"""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError


class Problem(BaseModel):
    """One problem of a request. `index`: of the event, where a list was sent."""

    index: int | None = None
    field: str
    loc: list[str | int]
    msg: str
    type: str


class Error(BaseModel):
    detail: str | list[Problem]


def invalid_body(error: ValidationError, loc: tuple[str | int, ...]) -> RequestValidationError:
    """The 422 of a body whose part at `loc` a model rejects."""
    problems = error.errors(include_url=False, include_context=False)
    return RequestValidationError(
        [{**problem, "loc": (*loc, *problem["loc"])} for problem in problems]
    )


Responses = dict[int | str, dict[str, Any]]


def responses(*codes: int) -> Responses:
    """The documented errors of a route: 400 and 415 of every body, and `codes`."""
    return {code: {"model": Error, "description": _ABOUT[code]} for code in codes}


_ABOUT = {
    400: "The body cannot be read.",
    401: "An API key is needed, or unknown.",
    403: "The API key lacks the scope.",
    404: "There is no such item.",
    406: "The surface's reply cannot be streamed: ask for JSON.",
    409: "Another request of this user has the same request id.",
    413: "The body, or one event, is larger than the limit that `detail` names.",
    415: "The content encoding is not supported: send gzip or none.",
    422: "The request is invalid: `detail` names each field.",
    429: "More requests wait than can be answered in time: ask again after `Retry-After` seconds.",
    503: "A server does not answer now: try again.",
}
KEYED = responses(401, 403)
WRITTEN = responses(400, 401, 403, 413, 415, 422, 503)
