"""Settings of who may call how often: `[security.oidc]` and `[security.rate_limits]`.

Knows keys and values. Does not know HTTP.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from deploy.settings.values import Section, Url

ScopeName = Literal["events", "recommend", "admin"]


def _is_rate(text: str) -> str:
    from limits import parse

    try:
        parse(text)
    except ValueError:
        raise ValueError('must be a rate such as "100/second" or "5000 per minute"') from None
    return text


Rate = Annotated[str, AfterValidator(_is_rate)]


class OidcSettings(Section):
    """Bearer tokens of an OpenID Connect provider, beside API keys; off without an issuer."""

    issuer: Url = ""
    audience: str = ""
    jwks_url: Url = ""  # "": the issuer's /.well-known/openid-configuration names it
    scopes_claim: str = "scope"
    scopes: dict[str, ScopeName] = {}  # the token's scope -> ours; tidemill:events needs none

    @model_validator(mode="after")
    def _has_an_audience(self) -> Self:
        if self.issuer and not self.audience:
            raise ValueError("an issuer needs audience, the name of this API in its tokens")
        return self
