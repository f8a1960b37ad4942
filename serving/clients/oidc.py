"""Bearer tokens of an OpenID Connect provider, beside API keys.

Knows tokens, signatures and which of their scopes give which of ours. Does not know routes. Keys of
the provider are kept for ten minutes, so that one that it withdraws ends to count, and longer only
while it does not answer; a token that names another key fetches them again, at most once in 30 s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt

_TIMEOUT_S = 3.0
_AGAIN_S = 30.0
_KEEP_S = 600.0
_DOWN_S = 5.0  # how long a failed fetch is not repeated
_LEEWAY_S = 30.0
ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "EdDSA")
OWN_PREFIX = "tidemill:"


class BadToken(Exception):
    """The token gives no access; the message says why, without the token."""


class ProviderDown(Exception):
    """The provider's keys cannot be fetched now; the message names its address."""


@dataclass(frozen=True)
class OidcConfig:
    """A provider and what its tokens must say.

    issuer: of the claim `iss`; its `/.well-known/openid-configuration` names the keys unless
    `jwks_url` does. audience: one of the claim `aud`. scopes: the token's scope -> ours; a scope
    such as `tidemill:events` counts without being named.
    """

    issuer: str
    audience: str
    jwks_url: str = ""
    scopes_claim: str = "scope"
    scopes: Mapping[str, str] = field(default_factory=dict)


class Oidc:
    """Verifies tokens. Blocks while it fetches keys; safe for threads."""

    def __init__(self, config: OidcConfig) -> None:
        self._config = config
        self._keys: dict[str, Any] = {}
        self._fetched = float("-inf")
        self._down_until, self._why_down = float("-inf"), ""
        self._lock = threading.Lock()

    def scopes(self, token: str) -> tuple[str, frozenset[str]]:
        """The token's subject and the scopes that it gives.

        Raises:
            BadToken: it is not signed by the provider, is expired, or is for others.
            ProviderDown: the provider's keys cannot be fetched.
        """
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid") or "")
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise BadToken(f"the token is not accepted: {error}") from None
        return f"sub:{claims['sub']}", self._own_scopes(claims.get(self._config.scopes_claim))

    def _own_scopes(self, stated: Any) -> frozenset[str]:
        listed = stated if isinstance(stated, list) else []
        names = stated.split() if isinstance(stated, str) else listed
        names = [name for name in names if isinstance(name, str)]
        mapped = [self._config.scopes[name] for name in names if name in self._config.scopes]
        own = [name.removeprefix(OWN_PREFIX) for name in names if name.startswith(OWN_PREFIX)]
        return frozenset([*mapped, *own])

    def _key(self, kid: str) -> Any:
        fresh = time.monotonic() - self._fetched <= _KEEP_S
        if fresh and (known := self._keys.get(kid)) is not None:
            return known  # without the lock: another caller may be fetching
        if not self._lock.acquire(timeout=_TIMEOUT_S):
            raise ProviderDown(f"no keys from {self._config.issuer} yet")
        try:
            self._refresh(kid)
        finally:
            self._lock.release()
        if (known := self._keys.get(kid)) is not None:
            return known
        raise BadToken("the token is not accepted: its key is none of the provider's")

    def _refresh(self, kid: str) -> None:
        """Fetches the keys if they are older than a known or an unknown `kid` allows. A failure is
        remembered, so that callers do not wait for a provider that hangs one after the other; a
        known key counts on meanwhile."""
        now, known = time.monotonic(), kid in self._keys
        if now - self._fetched <= (_KEEP_S if known else _AGAIN_S):
            return
        if now >= self._down_until:
            try:
                self._keys, self._fetched = self._fetch(), time.monotonic()
                return
            except ProviderDown as down:
                self._down_until, self._why_down = time.monotonic() + _DOWN_S, str(down)
        if not known:
            raise ProviderDown(self._why_down)

    def _fetch(self) -> dict[str, Any]:
        url = self._config.jwks_url
        try:
            if not url:
                place = self._config.issuer.rstrip("/") + "/.well-known/openid-configuration"
                found = httpx.get(place, timeout=_TIMEOUT_S).raise_for_status()
                url = str(found.json()["jwks_uri"])
            body = httpx.get(url, timeout=_TIMEOUT_S).raise_for_status().json()
            keys = jwt.PyJWKSet.from_dict(body).keys
        except (httpx.HTTPError, ValueError, LookupError, TypeError, jwt.PyJWTError) as error:
            place = url or self._config.issuer
            raise ProviderDown(f"no keys from {place}: {type(error).__name__}") from None
        return {key.key_id or "": key for key in keys}
