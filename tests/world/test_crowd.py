"""The crowd over HTTP: it keeps to the contract and its rate, and labels its events."""

from __future__ import annotations

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson
import pytest

from deploy.simulation.config import WorldConfig
from deploy.simulation.crowd import Crowd, RateLimiter
from deploy.simulation.history import History
from deploy.simulation.movielens import MovieLens
from deploy.simulation.queries import legal
from deploy.simulation.tally import SlateGroup, Tally
from deploy.simulation.truth import Truth, plant
from streams.contract.clock import AcceleratedClock
from streams.contract.events import EVENT, Event

RATE = 2_000.0
ASKED = 180  # requests; three seconds of a quiet machine


class _Gateway(ThreadingHTTPServer):
    """Answers like the gateway, from the world's films, and records events."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.truth = truth
        self.asked: list[tuple[float, str, dict[str, Any]]] = []
        self.events: list[Event] = []

    def reply(self, surface: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((time.monotonic(), surface, body))
        films = self.truth.data.films
        request_id = f"r{len(self.asked)}"
        if surface == "queries":
            film = films[self.truth.film_row[body["video_id"]]]
            offered = legal(film, ("genre",))[: body["k"]]
            items = [{"video_id": film.video_id, "query": query} for query in offered]
        else:
            chosen = body.get("candidates") or [film.video_id for film in films[: body["k"]]]
            items = [{"video_id": video_id, "author_id": "studio"} for video_id in chosen]
        for slot, item in enumerate(items):
            item |= {"slot": slot, "impression": f"{request_id}:{slot}"}
        known = {
            "request_id": request_id,
            "surface": surface,
            "release": "r1",
            "models": {"ranker": 1},
            "arm": ("popularity", "ranker")[int(body["user_id"][1:]) % 2],
        }
        return known | {"items": items, "fallbacks": []}


class _Handler(BaseHTTPRequestHandler):
    server: _Gateway

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        surface = self.path.removeprefix("/v1/")
        if surface == "events":
            self.server.events += [EVENT.validate_python(event) for event in body]
            self._answer(202, {"accepted": len(body)})
        else:
            self._answer(200, self.server.reply(surface, body))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        raw = orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def fast_world() -> WorldConfig:
    usual = WorldConfig.load()
    crowd = usual.crowd.model_copy(update={"requests_per_s": 60.0, "reactivation_share": 0.3})
    session = usual.session.model_copy(update={"order_after_query": 0.5})
    return usual.model_copy(update={"crowd": crowd, "session": session})


@pytest.fixture(scope="module")
def truth(data: MovieLens, fast_world: WorldConfig) -> Truth:
    return plant(data, fast_world, 0)


@pytest.fixture(scope="module")
def lived(truth: Truth, past: History) -> tuple[_Gateway, Tally, Crowd, int]:
    """The crowd until it has asked the gateway often enough."""
    gateway, tally = _Gateway(truth), Tally(phase="now")
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    origin_ms = past.frame["event_time_ms"].max()
    assert isinstance(origin_ms, int)
    clock = AcceleratedClock(time.time_ns() // 1_000_000, origin_ms, RATE)
    address = f"http://127.0.0.1:{gateway.server_port}"
    crowd = Crowd(truth, past, address, clock, tally, clock_rate=RATE)

    async def live() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(crowd.run(stop))
        while len(gateway.asked) < ASKED:
            await asyncio.sleep(0.02)
        stop.set()
        await running

    asyncio.run(live())
    gateway.shutdown()
    gateway.server_close()
    return gateway, tally, crowd, clock.now_ms()


Lived = tuple[_Gateway, Tally, Crowd, int]


def test_all_three_surfaces_are_asked(lived: Lived) -> None:
    gateway, tally, _, _ = lived
    assert {surface for _, surface, _ in gateway.asked} == {"feed", "queries", "reactivation"}
    assert set(tally.latencies()) == {"feed", "queries", "reactivation"}
    assert not tally.failures


def test_every_event_is_labelled_and_answers_its_impression(lived: Lived) -> None:
    gateway, _, _, _ = lived
    assert len(gateway.events) > 100
    for event in gateway.events:
        assert event.origin == "simulated"
        assert event.impression is not None
        assert event.impression.split(":")[0] == event.request_id


def test_some_orders_follow_a_clicked_query(lived: Lived) -> None:
    gateway, _, _, _ = lived
    of_queries = [event for event in gateway.events if event.surface == "queries"]
    clicked = {event.impression for event in of_queries if event.kind == "query_click"}
    ordered = {event.impression for event in of_queries if event.kind == "order"}
    assert ordered
    assert ordered < clicked


def test_no_event_is_reported_before_it_happens(lived: Lived) -> None:
    gateway, _, _, ended_ms = lived
    assert max(event.event_time_ms for event in gateway.events) <= ended_ms


def test_every_event_has_an_id_of_its_own(lived: Lived) -> None:
    gateway, _, _, _ = lived
    ids = [event.event_id for event in gateway.events]
    assert len(set(ids)) == len(ids)


def test_an_action_comes_only_on_what_was_shown(lived: Lived) -> None:
    gateway, _, _, _ = lived
    shown = {event.impression for event in gateway.events if event.kind == "shown"}
    asked = {event.impression for event in gateway.events if event.kind == "query_shown"}
    for event in gateway.events:
        assert event.impression in (asked if event.surface == "queries" else shown)


def test_the_tally_counts_the_ranked_slates_it_reported(lived: Lived) -> None:
    gateway, tally, _, _ = lived
    at_random = {f"r{n}" for n, (_, _, body) in enumerate(gateway.asked, 1) if "candidates" in body}
    mine = [
        event
        for event in gateway.events
        if event.surface == "feed" and event.request_id not in at_random
    ]
    events = {kind: sum(event.kind == kind for event in mine) for kind in ("shown", "play")}
    arms = [tally.click_rate(SlateGroup("now", "1", arm)) for arm in ("popularity", "ranker")]
    shown, plays = sum(arm.n for arm in arms), sum(arm.value * arm.n for arm in arms)
    cut = events["shown"] - shown  # slates whose report was under way at the end
    assert 0 <= cut <= events["shown"] * 0.3
    assert events["play"] - cut <= round(plays) <= events["play"]


def test_no_arm_comes_near_the_oracle_with_the_catalogues_first_films(lived: Lived) -> None:
    found = lived[1].compare_arms("popularity", "ranker")
    assert all(clicks.n > 100 for clicks in found.clicks.values())
    assert max(clicks.high for clicks in found.clicks.values()) < found.ceiling < 0.8


def test_requests_keep_the_configured_rate(lived: Lived, fast_world: WorldConfig) -> None:
    gateway, _, _, _ = lived
    times = np.asarray([at for at, _, _ in gateway.asked])
    assert len(times) / (times[-1] - times[0]) <= fast_world.crowd.requests_per_s * 1.1


def test_called_back_users_are_dormant_ones(lived: Lived, truth: Truth, past: History) -> None:
    gateway, tally, crowd, _ = lived
    called = {body["user_id"] for _, surface, body in gateway.asked if surface == "reactivation"}
    assert called
    # Who comes back is decided as soon as a call is answered; those under way at the end are not.
    assert sum(tally.returns.values()) == tally.latencies()["reactivation"].count
    fresh = Crowd(truth, past, "http://127.0.0.1:1", crowd._clock, Tally())
    assert fresh.dormant.mean() == pytest.approx(truth.world.session.dormant_share, abs=0.01)


async def test_a_rate_limiter_keeps_its_rate() -> None:
    limiter, began = RateLimiter(200.0), time.monotonic()
    await asyncio.gather(*(limiter.wait() for _ in range(41)))
    assert time.monotonic() - began >= 40 / 200.0
