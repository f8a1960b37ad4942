"""Laws of impression tokens: they fit their field, verify, and keep their wire format."""

from __future__ import annotations

import base64

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.contract.bounds import MAX_ID, MAX_IMPRESSION, MAX_QUERY
from streams.contract.events import Play
from streams.contract.impression import (
    MAX_SURFACE,
    MAX_WEIGHTS,
    BadToken,
    Impression,
    is_digest,
    sign,
    verify,
)

KEY = bytes(range(32))
NOW = 1_790_000_000_000
_TEXT = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
IDS = st.text(_TEXT, min_size=1, max_size=MAX_ID) | st.text(_TEXT, min_size=MAX_ID, max_size=MAX_ID)
QUERIES = st.text(_TEXT, min_size=1, max_size=MAX_QUERY)
NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=MAX_SURFACE
)
WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=MAX_WEIGHTS).map(tuple)
NAMED = ("arm", "experiment", "team")
UNCHANGED = ("request_id", "surface", "slot", "propensity", "release", "served_at_ms", *NAMED)

# Signed by version 1 (with `KEY`). Never regenerate them.
VERSION_1 = {
    "eyJyZXF1ZXN0X2lkIjoici0xIiwic3VyZmFjZSI6ImZlZWQiLCJ1c2VyX2lkIjoidTEiLCJ2aWRlb19pZCI6InYy"
    "Iiwic2xvdCI6MywicHJvcGVuc2l0eSI6MC4yNSwiZXhwbG9yZWQiOnRydWUsInJlbGVhc2UiOiJyMDAwMiIsInNl"
    "cnZlZF9hdF9tcyI6MTc5MDAwMDAwMDAwMH0.Ox_Kop2FVvqnjuLuEVRPfA": Impression(
        request_id="r-1",
        surface="feed",
        user_id="u1",
        video_id="v2",
        slot=3,
        propensity=0.25,
        explored=True,
        release="r0002",
        served_at_ms=NOW,
    ),
    "eyJyZXF1ZXN0X2lkIjoicTo3Iiwic3VyZmFjZSI6InF1ZXJpZXMiLCJ1c2VyX2lkIjoia8OkdGhlIiwidmlkZW9f"
    "aWQiOiLli5XnlLsiLCJxdWVyeSI6Im9jZWFuIGxpZmUiLCJzbG90IjowLCJwcm9wZW5zaXR5IjoxLjAsImV4cGxv"
    "cmVkIjpmYWxzZSwicmVsZWFzZSI6Im5vbmUiLCJzZXJ2ZWRfYXRfbXMiOjE3OTAwMDAwMDAwMDF9"
    ".nN5LENs9QSylTKIRTeVUrQ": Impression(
        request_id="q:7",
        surface="queries",
        user_id="käthe",
        video_id="動画",
        query="ocean life",
        slot=0,
        propensity=1.0,
        release="none",
        served_at_ms=NOW + 1,
    ),
    "eyJyZXF1ZXN0X2lkIjoidyIsInN1cmZhY2UiOiJmZWVkIiwidXNlcl9pZCI6InUyIiwidmlkZW9faWQiOiJ2OSIs"
    "InNsb3QiOjEsInByb3BlbnNpdHkiOjAuNSwiZXhwbG9yZWQiOmZhbHNlLCJyZWxlYXNlIjoicjAwMDMiLCJzZXJ2"
    "ZWRfYXRfbXMiOjE3OTAwMDAwMDAwMDIsIndlaWdodHMiOlswLjUsMC4zLDAuMl0sImxvZ19kZW5zaXR5IjotMS4y"
    "NX0.4TcYLFQBJ075_c1RUnoVxA": Impression(
        request_id="w",
        surface="feed",
        user_id="u2",
        video_id="v9",
        slot=1,
        propensity=0.5,
        release="r0003",
        served_at_ms=NOW + 2,
        weights=(0.5, 0.3, 0.2),
        log_density=-1.25,
    ),
}


@st.composite
def impressions(draw: st.DrawFn) -> Impression:
    return Impression(
        request_id=draw(st.uuids()).hex,
        surface=draw(NAMES),
        user_id=draw(IDS),
        video_id=draw(IDS),
        query=draw(st.none() | QUERIES),
        slot=draw(st.integers(0, 9_999)),
        propensity=draw(st.floats(0, 1)),
        explored=draw(st.booleans()),
        release="r" + "9" * 15,
        served_at_ms=draw(st.integers(0, 4_102_444_800_000)),
        weights=draw(st.none() | WEIGHTS),
        log_density=draw(st.none() | st.floats(-1e6, 1e6)),
        arm=draw(st.none() | NAMES),
        origin_item_id=draw(st.none() | IDS),
        experiment=draw(st.none() | NAMES),
        team=draw(st.sampled_from((None, "a", "b"))),
    )


@settings(deadline=None)
@given(impressions())
def test_every_signed_token_is_accepted_as_an_events_impression(served: Impression) -> None:
    token = sign(served, KEY)
    assert len(token) <= MAX_IMPRESSION
    event = Play(
        event_id="e",
        user_id=served.user_id,
        video_id=served.video_id,
        event_time_ms=NOW,
        impression=token,
    )
    assert event.impression == token


@settings(deadline=None)
@given(impressions())
def test_the_texts_of_the_event_restore_what_a_token_shortened(served: Impression) -> None:
    texts = served.model_dump(include={"user_id", "video_id", "query", "origin_item_id"})
    found = verify(sign(served, KEY), KEY).with_texts(**texts)
    assert not found.has_digests
    assert texts == {name: getattr(found, name) for name in texts}
    for name in UNCHANGED:
        assert getattr(found, name) == getattr(served, name)


def test_short_texts_are_not_shortened_and_other_texts_restore_nothing() -> None:
    long = "長" * MAX_ID
    served = next(iter(VERSION_1.values())).model_copy(
        update={"user_id": long, "video_id": long[1:], "query": "q" * MAX_QUERY}
    )
    found = verify(sign(served, KEY), KEY)
    assert is_digest(found.user_id)
    assert found.query == served.query
    assert is_digest(found.with_texts(user_id="another").user_id)


@pytest.mark.parametrize("token", VERSION_1)
def test_tokens_of_version_1_are_read_until_their_windows_end(token: str) -> None:
    assert verify(token, KEY) == VERSION_1[token]


def test_the_wire_format_of_version_2_does_not_change() -> None:
    served = Impression(
        request_id="0" * 32,
        surface="feed",
        user_id="u1",
        video_id="v2",
        slot=3,
        propensity=0.25,
        release="r0002",
        served_at_ms=NOW,
        arm="b",
        origin_item_id="v7",
    )
    assert sign(served, KEY) == VERSION_2
    assert verify(VERSION_2, KEY) == served


def test_the_keys_of_experiments_keep_their_bytes_and_an_older_reader_skips_them() -> None:
    served = verify(VERSION_2, KEY).model_copy(update={"experiment": "x1", "team": "b"})
    assert sign(served, KEY) == VERSION_2_EXPERIMENT
    assert verify(VERSION_2_EXPERIMENT, KEY) == served
    keys = orjson.loads(base64.urlsafe_b64decode(VERSION_2_EXPERIMENT.split(".")[1] + "=="))
    assert {key: keys[key] for key in "em"} == {"e": "x1", "m": "b"}


def test_the_versions_cannot_be_exchanged() -> None:
    """A body that was signed for one version is no token of the other."""
    token = next(iter(VERSION_1))
    for changed in (f"2.{token}", VERSION_2.removeprefix("2.")):
        with pytest.raises(BadToken):
            verify(changed, KEY)


# Signed by version 2 (with `KEY`). Never regenerate it.
VERSION_2 = (
    "2.eyJpIjoiMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAiLCJmIjoiZmVlZCIsInUiOiJ1MSIsInYiOiJ2MiIsInMiOj"
    "MsInAiOjAuMjUsInIiOiJyMDAwMiIsInQiOjE3OTAwMDAwMDAwMDAsImEiOiJiIiwibyI6InY3In0.UageDgVu_EMCtGKyPbYWMw"
)
# The same with an experiment's keys. Never regenerate it.
VERSION_2_EXPERIMENT = (
    "2.eyJpIjoiMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAiLCJmIjoiZmVlZCIsInUiOiJ1MSIsInYiOiJ2MiIsInMiOj"
    "MsInAiOjAuMjUsInIiOiJyMDAwMiIsInQiOjE3OTAwMDAwMDAwMDAsImEiOiJiIiwibyI6InY3IiwiZSI6IngxIiwibSI6ImIifQ.1Y3PAGBjj4-fosHp9iwgTQ"
)
