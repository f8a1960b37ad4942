"""A login for Faust's client, aiokafka.

Knows Faust's credentials and OAuth 2.0's client credentials grant. Does not know librdkafka.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from aiokafka.conn import AbstractTokenProvider
from faust.auth import Credentials, OAuthCredentials, SASLCredentials, SSLCredentials

from streams.bus.kafka.login import KafkaLogin

_SPARE_S = 30.0  # a token is renewed this long before it expires
_TIMEOUT_S = 10.0


def credentials(login: KafkaLogin) -> Credentials | None:
    """Faust's form of the login; None for plain text."""
    if login.protocol == "PLAINTEXT":
        return None
    context = login.ssl_context()
    if not login.authenticated:
        return SSLCredentials(context)
    if login.mechanism == "OAUTHBEARER":
        return OAuthCredentials(oauth_cb=TokenProvider(login), ssl_context=context)
    return SASLCredentials(
        username=login.username,
        password=login.password,
        mechanism=login.mechanism,
        ssl_context=context,
    )


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of `login.token_url`, kept until shortly before they expire."""

    def __init__(self, login: KafkaLogin) -> None:
        self._login = login
        self._token, self._until = "", 0.0
        self._verify: Any = login.ssl_context() if login.ca_file and login.encrypted else True

    async def token(self) -> str:
        """A token.

        Raises:
            RuntimeError: the token server refuses or does not answer; the message has no secret.
        """
        if time.monotonic() >= self._until:
            self._token, lasts_s = await asyncio.to_thread(self._fetch)
            self._until = time.monotonic() + max(lasts_s - _SPARE_S, lasts_s / 2)
        return self._token

    def _fetch(self) -> tuple[str, float]:
        url = self._login.token_url
        try:
            reply = httpx.post(
                url,
                data={"grant_type": "client_credentials"},
                auth=(self._login.username, self._login.password),
                timeout=_TIMEOUT_S,
                verify=self._verify,
            )
            reply.raise_for_status()
            body = reply.json()
            return str(body["access_token"]), float(body.get("expires_in", 2 * _SPARE_S))
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            what = type(error).__name__
            raise RuntimeError(
                f"no token from {url} ({what}): correct broker.security.token_url, username or password"
            ) from None
