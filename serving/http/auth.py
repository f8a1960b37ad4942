"""API keys with scopes; required once keys are configured or the host is not loopback.

Knows keys, scopes and whether the listener is on loopback. Does not know routes: each
route names the scope that it needs.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from fastapi import HTTPException, Request

Scope = Literal["events", "recommend", "admin"]


class Keys:
    """The configured keys. Without keys, and on loopback, every call is permitted."""

    def __init__(self, scopes_of: Mapping[str, Sequence[str]], host: str) -> None:
        self._scopes_of = {key.encode(): frozenset(scopes) for key, scopes in scopes_of.items()}
        self.required = bool(scopes_of) or not on_loopback(host)

    def permit(self, presented: str | None, scope: Scope) -> None:
        """Returns if the call is permitted.

        Raises:
            HTTPException: 401 for a missing or unknown key, 403 for a key without the scope.
        """
        if not self.required:
            return
        if not presented:
            raise HTTPException(
                401,
                "an API key is needed: send it as X-API-Key or as Authorization: Bearer; "
                "keys are configured in security.api_keys",
                {"WWW-Authenticate": "Bearer"},
            )
        found: frozenset[str] | None = None
        # Every key is compared, each in constant time, so timing reveals nothing.
        for key, scopes in self._scopes_of.items():
            if hmac.compare_digest(key, presented.encode()):
                found = scopes
        if found is None:
            raise HTTPException(401, "unknown API key", {"WWW-Authenticate": "Bearer"})
        if scope not in found:
            raise HTTPException(403, f"this API key lacks the scope {scope!r}")


def needs(scope: Scope) -> Callable[[Request], Awaitable[None]]:
    """A route dependency that requires `scope`. Async: FastAPI runs others on a thread each."""

    async def check(request: Request) -> None:
        keys: Keys = request.app.state.keys
        keys.permit(presented_key(request), scope)

    return check


def permits(request: Request, scope: Scope) -> bool:
    """Whether the call may also do what needs `scope`."""
    keys: Keys = request.app.state.keys
    try:
        keys.permit(presented_key(request), scope)
    except HTTPException:
        return False
    return True


def presented_key(request: Request) -> str | None:
    direct = request.headers.get("x-api-key")
    if direct:
        return direct
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" and value.strip() else None


def on_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
