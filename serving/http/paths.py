"""Ids in URL paths: every id that the event contract accepts, also with `/` or `%2F`.

Knows paths and their encoding. Does not know routes. A path parameter `{name:id}` takes the rest
of the path, so it must be the last one. Clients remove the segments `.` and `..` from a path:
ids of that form can be sent in a body only (`POST /v1/users/lookup`, `POST /v1/erasures`,
`POST /v1/catalogue` and the routes below it).
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import unquote_to_bytes

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send


class _IdConvertor(Convertor[str]):
    regex = r"[\s\S]+"  # unlike starlette's `path`, also line feeds

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _IdConvertor())


class DecodedOnce:
    """Middleware: routes see the path as it was sent, decoded exactly once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path")
        if scope["type"] == "http" and raw:
            with suppress(UnicodeDecodeError):  # `decodable_path` rejects it
                scope = {**scope, "path": unquote_to_bytes(raw).decode()}
        await self._app(scope, receive, send)


def decodable_path(request: Request) -> None:
    """A route dependency: the path is UTF-8.

    Servers replace bytes that are not, so that a path with such bytes would name another id.

    Raises:
        RequestValidationError: it is not; the error names the path's parameter.
    """
    try:
        unquote_to_bytes(request.scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError as error:
        names = request.path_params or {"path": ""}
        raise RequestValidationError(
            [
                {"type": "string_unicode", "loc": ("path", name), "msg": "not UTF-8"}
                for name in names
            ]
        ) from error
