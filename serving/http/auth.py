"""API keys and tokens with scopes; required once some are configured or the host is not loopback.

Knows keys, scopes, rates and whether the listener is on loopback. Does not know routes: each
route names the scope that it needs.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from serving.clients.oidc import BadToken, Oidc, ProviderDown
from serving.http.rates import Rates

Scope = Literal["events", "recommend", "admin"]
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_EVERY_SCOPE = frozenset[str](("events", "recommend", "admin"))


class Keys:
    """The configured keys and the token provider. Without any, and on loopback, every call is
    permitted."""

    def __init__(
        self,
        scopes_of: Mapping[str, Sequence[str]],
        host: str,
        oidc: Oidc | None = None,
        rates: Rates | None = None,
    ) -> None:
        self._scopes_of = {key.encode(): frozenset(scopes) for key, scopes in scopes_of.items()}
        self._oidc, self._rates = oidc, rates or Rates({})
        self.required = bool(scopes_of) or oidc is not None or not on_loopback(host)

    async def permit(self, request: Request, scope: Scope) -> None:
        """Returns if the call is permitted and within its rate.

        Raises:
            HTTPException: 401 for a missing or unknown key or token, 403 for one without the
                scope, 429 beyond the rate, 503 while the token provider does not answer.
        """
        caller, scopes = await self._identify(request)
        request.state.scopes = scopes
        if scope not in scopes:
            raise HTTPException(403, f"this API key or token lacks the scope {scope!r}")
        self._rates.count(scope, caller)

    async def _identify(self, request: Request) -> tuple[str, frozenset[str]]:
        """Who calls (a digest or a subject, never a key) and what they may do."""
        presented = presented_key(request)
        if not self.required:
            address = request.client.host if request.client else ""
            return f"address:{address}", _EVERY_SCOPE
        if not presented:
            raise HTTPException(
                401,
                "an API key is needed: send it as X-API-Key or as Authorization: Bearer; "
                "keys are configured in security.api_keys",
                _CHALLENGE,
            )
        if (scopes := self._key_scopes(presented)) is not None:
            return f"key:{hashlib.sha256(presented.encode()).hexdigest()}", scopes
        if self._oidc is None or presented.count(".") != 2:
            raise HTTPException(401, "unknown API key", _CHALLENGE)
        try:
            return await run_in_threadpool(self._oidc.scopes, presented)
        except BadToken as error:
            raise HTTPException(401, str(error), _CHALLENGE) from None
        except ProviderDown as error:
            raise HTTPException(503, str(error), {"Retry-After": "5"}) from None

    def _key_scopes(self, presented: str) -> frozenset[str] | None:
        found = None
        # Every key is compared, each in constant time, so timing reveals nothing.
        for key, scopes in self._scopes_of.items():
            if hmac.compare_digest(key, presented.encode()):
                found = scopes
        return found


def needs(scope: Scope) -> Callable[[Request], Awaitable[None]]:
    """A route dependency that requires `scope`. Async: FastAPI runs others on a thread each."""

    async def check(request: Request) -> None:
        keys: Keys = request.app.state.keys
        await keys.permit(request, scope)

    return check


def permits(request: Request, scope: Scope) -> bool:
    """Whether the call, which its route has permitted, may also do what needs `scope`."""
    scopes: frozenset[str] = request.state.scopes
    return scope in scopes


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
