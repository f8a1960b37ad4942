"""The impression token: what was served, signed, so that feedback can be trusted.

Knows slots, propensities and releases as plain values. Does not know how a slate is ranked.

Version 2 is "2." + base64url(JSON with short keys) + "." + base64url(MAC), where the MAC is the
first 16 bytes of the HMAC-SHA256 of "2." and the JSON. A token is never longer than the field
`impression` of an event: texts that are too long are replaced by their digests, and the event
that carries the token states them in full (`Impression.with_texts`). Unknown keys are ignored,
so a later version can add some.

Version 1 has no prefix, long keys and the caller's request id. It is only read: until the
attribution windows of the last slates that it signed have ended.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from functools import lru_cache
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streams.contract.bounds import MAX_IMPRESSION

MAX_SURFACE = MAX_ARM = 32  # printable ASCII characters
POPULARITY_ARM, RANKER_ARM = "popularity", "ranker"  # of the feed's shipped experiment
HOLDOUT_ARM = "holdout"  # users whom no model ranks, in no experiment
UNRANKED_ARMS = POPULARITY_ARM, HOLDOUT_ARM
MAX_WEIGHTS = 32
_PREFIX = "2."
_MAC_BYTES = 16
_MAC_CHARS = 22  # base64 without padding
_MAX_BODY_BYTES = (MAX_IMPRESSION - len(_PREFIX) - 1 - _MAC_CHARS) * 3 // 4
_WEIGHT_DIGITS, _DENSITY_DIGITS = 6, 4
# A digest starts with NUL, which no id and no query may contain, so it never equals one.
_DIGEST_MARK = "\0"

_Name = Annotated[str, Field(min_length=1, max_length=MAX_SURFACE, pattern="^[!-~]+$")]


class Impression(BaseModel):
    """One slot of one slate. `propensity` is P(this item in this slot | slots above, weights).

    request_id: made by the server for each slate; in version 1, the caller's.
    surface: any name of up to 32 printable ASCII characters.
    weights: the fusion weights that were drawn to explore, in the order of the ranker's tasks;
    log_density: that of the draw. Both are None if the policy's mean or no ranker ranked the
    slate, and the same in every slot.
    arm: of the `experiment` that the slate belongs to; the holdout is an arm without one.
    team: of an interleaved slate, the policy that picked this item, a or b; its propensity is then
    given both policies' rankings. origin_item_id: the item that the slate was requested from, such
    as the one that was playing.
    placed: a rule put the item into its slot or restricted the choice to some candidates, so what
    was done with it says nothing about another policy.
    A long user_id, video_id, query or origin_item_id may be a digest (`is_digest`).
    """

    model_config = ConfigDict(frozen=True)

    request_id: str
    surface: _Name
    user_id: str
    video_id: str
    query: str | None = None
    slot: int
    propensity: float
    explored: bool = False
    release: str
    served_at_ms: int
    weights: Annotated[tuple[float, ...], Field(max_length=MAX_WEIGHTS)] | None = None
    log_density: float | None = None
    arm: _Name | None = None
    origin_item_id: str | None = None
    placed: bool = False
    experiment: _Name | None = None
    team: Literal["a", "b"] | None = None

    @property
    def impression_id(self) -> str:
        return f"{self.request_id}:{self.slot}"

    @property
    def has_digests(self) -> bool:
        return any(is_digest(getattr(self, name)) for name in _SHORTENED)

    def with_texts(self, **texts: str | None) -> Impression:
        """The impression with each digest replaced by the given text of which it is the digest."""
        found = {
            name: text
            for name, text in texts.items()
            if text is not None and getattr(self, name) == text_digest(text)
        }
        return self.model_copy(update=found) if found else self


class BadToken(ValueError):
    """The token is malformed or was not signed with this stack's key."""


# The keys are the wire format: a new field takes a new key, and a removed field's is never reused.
_KEYS = {
    "request_id": "i",
    "surface": "f",
    "user_id": "u",
    "video_id": "v",
    "query": "q",
    "slot": "s",
    "propensity": "p",
    "explored": "x",
    "release": "r",
    "served_at_ms": "t",
    "weights": "w",
    "log_density": "d",
    "arm": "a",
    "origin_item_id": "o",
    "placed": "b",
    "experiment": "e",
    "team": "m",
}
_FIELDS = {key: name for name, key in _KEYS.items()}
_SHORTENED = ("user_id", "video_id", "query", "origin_item_id")


def sign(impression: Impression, key: bytes) -> str:
    """A token of at most `MAX_IMPRESSION` characters.

    Weights keep 6 digits after the point and their log density 4.

    Raises:
        ValueError: it does not fit, because its request id or release is too long.
    """
    body = _body(impression)
    return f"{_PREFIX}{_b64(body)}.{_b64(_mac(_PREFIX.encode() + body, key))}"


def verify(token: str, key: bytes) -> Impression:
    """Reads a token of either version.

    Raises:
        BadToken: the token is malformed or its signature does not match `key`.
    """
    second = token.startswith(_PREFIX)
    try:
        body_part, mac_part = token[len(_PREFIX) if second else 0 :].split(".")
        body, mac = _unb64(body_part), _unb64(mac_part)
    except (ValueError, binascii.Error) as error:
        raise BadToken("impression token is malformed") from error
    signed = _PREFIX.encode() + body if second else body
    if not hmac.compare_digest(mac, _mac(signed, key)):
        raise BadToken("impression token was not signed by this stack")
    try:
        return _impression(orjson.loads(body)) if second else Impression.model_validate_json(body)
    except (ValidationError, orjson.JSONDecodeError, AttributeError) as error:
        raise BadToken("impression token has an unknown format") from error


def is_digest(text: str | None) -> bool:
    """Whether a token holds the digest of a text that was too long, not the text."""
    return text is not None and text.startswith(_DIGEST_MARK)


def text_digest(text: str) -> str:
    return _DIGEST_MARK + _b64(hashlib.sha256(text.encode()).digest()[:16])


def _impression(fields: dict[str, Any]) -> Impression:
    return Impression.model_validate(
        {_FIELDS[key]: value for key, value in fields.items() if key in _FIELDS}
    )


def _body(impression: Impression) -> bytes:
    """The signed JSON: the longest texts become digests until all fits."""
    fields = impression.model_dump(exclude_defaults=True)
    if "weights" in fields:
        fields["weights"] = [round(weight, _WEIGHT_DIGITS) for weight in fields["weights"]]
    if "log_density" in fields:
        fields["log_density"] = round(fields["log_density"], _DENSITY_DIGITS)
    texts = {n: fields[n] for n in _SHORTENED if n in fields and not is_digest(fields[n])}
    longest_first = sorted(texts, key=lambda name: len(orjson.dumps(texts[name])), reverse=True)
    for name in (None, *longest_first):
        if name is not None:
            fields[name] = text_digest(texts[name])
        body = orjson.dumps({_KEYS[field]: value for field, value in fields.items()})
        if len(body) <= _MAX_BODY_BYTES:
            return body
    raise ValueError(
        f"the impression takes {len(body)} bytes and a token has room for {_MAX_BODY_BYTES}: "
        "shorten its request id or its release"
    )


def _mac(body: bytes, key: bytes) -> bytes:
    mac = _keyed(key).copy()
    mac.update(body)
    return mac.digest()[:_MAC_BYTES]


@lru_cache(maxsize=16)
def _keyed(key: bytes) -> hmac.HMAC:
    """Cached: preparing the key takes longer than hashing a token."""
    return hmac.new(key, digestmod=hashlib.sha256)


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    # Equals `base64.urlsafe_b64decode` in a third of the time.
    plain = text.replace("-", "+").replace("_", "/")
    return binascii.a2b_base64(plain + "=" * (-len(text) % 4))
