"""Contracts that outlive a release: tokens, clocks, hashes and exported schemas."""

from __future__ import annotations

import base64

import orjson
import pytest

from deploy import export_schemas
from streams.contract import impression
from streams.contract.bounds import MAX_ID, MAX_IMPRESSION
from streams.contract.clock import AcceleratedClock, ManualClock, WallClock
from streams.contract.events import KINDS
from streams.contract.impression import BadToken, Impression, sign, verify
from streams.contract.topics import entity_hash

KEY = b"k" * 32
IMPRESSION = Impression(
    request_id="r1",
    surface="feed",
    user_id="u1",
    video_id="v1",
    slot=3,
    propensity=0.25,
    release="rel-1",
    served_at_ms=1_750_000_000_000,
)
# `IMPRESSION` as an earlier version signed it, without weights. Never regenerate it.
OLD_TOKEN = (
    "eyJyZXF1ZXN0X2lkIjoicjEiLCJzdXJmYWNlIjoiZmVlZCIsInVzZXJfaWQiOiJ1MSIsInZpZGVvX2lkIjoidjEiLC"
    "JxdWVyeSI6bnVsbCwic2xvdCI6MywicHJvcGVuc2l0eSI6MC4yNSwiZXhwbG9yZWQiOmZhbHNlLCJyZWxlYXNlIjoi"
    "cmVsLTEiLCJzZXJ2ZWRfYXRfbXMiOjE3NTAwMDAwMDAwMDB9.HmpvDE-BXtdZjJRbhQdXhQ"
)


def test_a_signed_impression_is_verified_to_the_same_impression() -> None:
    assert verify(sign(IMPRESSION, KEY), KEY) == IMPRESSION
    assert IMPRESSION.impression_id == "r1:3"


def test_a_token_with_drawn_weights_fits_its_field() -> None:
    weights = {"weights": (0.123456,) * 8, "log_density": -12.3456}
    longest = dict.fromkeys(("request_id", "user_id", "video_id"), "x" * MAX_ID)
    drawn = IMPRESSION.model_copy(update=weights | longest)
    token = sign(drawn, KEY)
    assert verify(token, KEY) == drawn
    assert len(token) <= MAX_IMPRESSION


def test_tokens_of_an_earlier_and_a_later_version_are_read() -> None:
    """Feedback on slates that another version served is not lost."""
    assert verify(OLD_TOKEN, KEY) == IMPRESSION
    later = orjson.dumps(IMPRESSION.model_dump() | {"later_field": 1})
    parts = (later, impression._mac(later, KEY))
    token = ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts)
    assert verify(token, KEY) == IMPRESSION


@pytest.mark.parametrize("template", ["{}x", "A{}", "{}.x", "é.é", "a.b", "", "{}{}"])
def test_a_malformed_token_is_rejected(template: str) -> None:
    token = sign(IMPRESSION, KEY)
    with pytest.raises(BadToken):
        verify(template.format(token, token), KEY)


def test_another_key_or_a_changed_body_is_rejected() -> None:
    token = sign(IMPRESSION, KEY)
    with pytest.raises(BadToken):
        verify(token, b"other")
    forged = IMPRESSION.model_copy(update={"propensity": 0.01})
    mixed = sign(forged, b"other").rsplit(".", 1)[0] + "." + token.rsplit(".", 1)[1]
    with pytest.raises(BadToken):
        verify(mixed, KEY)


def test_a_signed_body_of_an_unknown_format_is_rejected() -> None:
    body = b'{"slot": 1}'
    mac = impression._mac(body, KEY)
    token = ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in (body, mac))
    with pytest.raises(BadToken, match="unknown format"):
        verify(token, KEY)


def test_an_accelerated_clock_runs_at_its_rate_from_its_origin() -> None:
    wall = WallClock().now_ms()
    clock = AcceleratedClock(origin_wall_ms=wall - 1_000, origin_ms=5_000, rate=60.0)
    assert 65_000 <= clock.now_ms() < 65_000 + 60 * 60_000
    same = AcceleratedClock(origin_wall_ms=wall - 1_000, origin_ms=5_000, rate=60.0)
    assert same == clock


def test_a_manual_clock_moves_only_by_advance() -> None:
    clock = ManualClock(5)
    clock.advance(7)
    assert (clock.now_ms(), clock.now_ms()) == (12, 12)


def test_hashes_and_kind_codes_match_stored_data() -> None:
    assert {i: entity_hash(i) for i in ("", "u1", "用户")} == {
        "": 3244421341483603138,
        "u1": 11367126444297510385,
        "用户": 16767568252231778415,
    }
    assert KINDS[:4] == ("shown", "skip", "play", "long_view")


def test_exported_schemas_are_current() -> None:
    for name, body in export_schemas.schemas().items():
        stored = (export_schemas.FOLDER / name).read_bytes()
        assert stored == body, "run: python -m deploy.export_schemas"
