"""The simulated crowd at the gateway: sessions over HTTP, on the stack's clock.

Knows the HTTP API and the event contract. Reactions are drawn by
`deploy.simulation.reactions` and counted by `deploy.simulation.tally`. Every event has the
origin `simulated` and the impression token of its slate.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import polars as pl

from deploy.simulation import reactions
from deploy.simulation.history import History
from deploy.simulation.oracle import Oracle
from deploy.simulation.reactions import Visit
from deploy.simulation.tally import NO_RANKER, SlateGroup, Tally
from deploy.simulation.truth import Truth
from streams.contract.clock import HOUR_MS, Clock
from streams.contract.events import CatalogueItem

Item = Mapping[str, Any]  # one item of a reply


class RateLimiter:
    """Limits its callers to a fixed rate in total."""

    def __init__(self, per_s: float) -> None:
        self._gap_s = 1 / per_s
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        at = max(self._next, now)
        self._next = at + self._gap_s
        await asyncio.sleep(at - now)


class Crowd:
    """Users who visit, watch, leave, become dormant and are called back."""

    def __init__(
        self,
        truth: Truth,
        past: History,
        address: str,
        clock: Clock,
        tally: Tally,
        *,
        seed: int = 0,
        clock_rate: float = 1.0,
        api_key: str | None = None,
    ) -> None:
        self._truth, self._clock, self._tally = truth, clock, tally
        self._items = {item.video_id: item for item in past.items}
        self._oracle = Oracle(truth, past)
        self._address, self._seed, self._clock_rate = address, seed, clock_rate
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._rng = np.random.default_rng([seed, 6])
        self._limiter = RateLimiter(truth.world.crowd.requests_per_s)
        users, films = len(truth.people.user_ids), len(truth.data.films)
        self._seen = np.zeros((users, films), dtype=np.int64)  # exposures
        self._busy = np.zeros(users, dtype=bool)
        self.dormant = _dormant_at_first(truth)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs sessions until `stop`; those in progress are then cancelled."""
        rules = self._truth.world.crowd
        limits = httpx.Limits(max_connections=rules.sessions_at_once)
        async with httpx.AsyncClient(
            base_url=self._address,
            timeout=rules.timeout_s,
            limits=limits,
            headers=self._headers,
            trust_env=False,
        ) as http:
            sessions: set[asyncio.Task[None]] = set()
            number = 0
            while not stop.is_set():
                await self._limiter.wait()
                if len(sessions) < rules.sessions_at_once:
                    number += 1
                    task = asyncio.create_task(self._session(http, number))
                    sessions.add(task)
                    task.add_done_callback(sessions.discard)
            for task in sessions:
                task.cancel()
            await asyncio.gather(*sessions, return_exceptions=True)

    async def _session(self, http: httpx.AsyncClient, number: int) -> None:
        rng = np.random.default_rng([self._seed, 7, number])
        calls = bool(rng.random() < self._truth.world.crowd.reactivation_share)
        user = self._pick(calls)
        if user is None:
            return
        self._busy[user] = True
        try:
            if not calls or await self._called_back(http, user, rng):
                await self._feed_session(http, user, rng)
        except (httpx.HTTPError, _Refused):
            self._tally.failed("session")
        finally:
            self._busy[user] = False

    def _pick(self, dormant: bool) -> int | None:
        free = np.flatnonzero((self.dormant == dormant) & ~self._busy)
        return int(self._rng.choice(free)) if len(free) else None

    async def _called_back(
        self, http: httpx.AsyncClient, user: int, rng: np.random.Generator
    ) -> bool:
        """Shows a dormant user a trajectory; whether the user comes back."""
        k = self._truth.world.crowd.trajectory_k
        reply = await self._ask(http, "reactivation", user, {"k": k})
        films = [self._truth.film_row[item["video_id"]] for item in _known(reply, self._items)]
        came = reactions.comes_back(self._truth, user, films, rng)
        self._tally.called_back(came)
        if came:
            self.dormant[user] = False
            await self._watch_slate(http, user, reply, rng)
        return came

    async def _feed_session(
        self, http: httpx.AsyncClient, user: int, rng: np.random.Generator
    ) -> None:
        rules = self._truth.world
        gained = []
        for _ in range(rules.session.max_slates):
            phase = self._tally.phase
            at_random = bool(rng.random() < rules.crowd.random_slates)
            reply = await self._ask(http, "feed", user, self._feed_body(at_random, rng))
            counted = None if at_random else _group_of(phase, reply)
            visit = await self._watch_slate(http, user, reply, rng, counted)
            gained.append(visit.utility)
            if not reactions.goes_on(self._truth, visit, rng):
                break
        self.dormant[user] = reactions.becomes_dormant(self._truth, float(np.mean(gained)), rng)

    def _feed_body(self, at_random: bool, rng: np.random.Generator) -> dict[str, Any]:
        k = self._truth.world.crowd.slate_k
        if not at_random:
            return {"k": k}
        films = rng.choice(len(self._truth.data.films), k, replace=False)
        return {"k": k, "candidates": [self._truth.data.films[film].video_id for film in films]}

    async def _watch_slate(
        self,
        http: httpx.AsyncClient,
        user: int,
        reply: Mapping[str, Any],
        rng: np.random.Generator,
        counted: SlateGroup | None = None,
    ) -> Visit:
        """Watches a slate for its duration on the stack's clock, then reports the events."""
        began_ms = self._clock.now_ms()
        shown = _known(reply, self._items)
        about = [self._items[item["video_id"]] for item in shown]
        films = [self._truth.film_row[item.video_id] for item in about]
        hour = began_ms // HOUR_MS % 24
        best = self._oracle.expected_clicks(user, len(films), self._seen[user], hour)
        visit = reactions.watch_slate(
            self._truth,
            user,
            films,
            [item.duration_ms for item in about],
            [item.price_cents for item in about],
            rng,
            self._exposures(user, films),
            hour,
        )
        self._oracle.play(user, [films[slot] for slot in visit.slots("play")])
        await asyncio.sleep(visit.lasted_ms / self._clock_rate / 1000)
        await self._report(http, list(self._events(user, reply, shown, visit, began_ms)))
        if counted is not None:
            counts = [len(visit.slots(kind)) for kind in ("shown", "play", "order")]
            self._tally.watched(counted, self._truth.people.user_ids[user], [*counts, best])
        slot = reactions.asks_under(self._truth, user, visit, rng)
        if slot is not None:
            await self._ask_under(http, user, films[slot], rng)
        return visit

    def _exposures(self, user: int, films: Sequence[int]) -> np.ndarray:
        """How often the user saw each film before; counts this exposure."""
        before = self._seen[user, films]
        np.add.at(self._seen[user], films, 1)
        return before

    async def _ask_under(
        self, http: httpx.AsyncClient, user: int, film: int, rng: np.random.Generator
    ) -> None:
        body = {
            "video_id": self._truth.data.films[film].video_id,
            "k": self._truth.world.crowd.queries_k,
        }
        reply = await self._ask(http, "queries", user, body)
        items = [item for item in reply["items"] if item.get("query")]
        clicked = reactions.clicks_query(
            self._truth, user, film, [item["query"] for item in items], rng
        )
        now_ms = self._clock.now_ms()
        events = [self._event(user, reply, item, "query_shown", now_ms) for item in items]
        if clicked is not None:
            events.append(self._event(user, reply, items[clicked], "query_click", now_ms + 1))
            if rng.random() < self._truth.world.session.order_after_query:
                order = self._event(user, reply, items[clicked], "order", now_ms + 2)
                price_cents = self._items[items[clicked]["video_id"]].price_cents
                events.append(order | {"amount_cents": price_cents})
        await self._report(http, events)

    async def _ask(
        self, http: httpx.AsyncClient, surface: str, user: int, body: dict[str, Any]
    ) -> dict[str, Any]:
        await self._limiter.wait()
        began = time.perf_counter()
        asked = {"user_id": self._truth.people.user_ids[user], **body}
        try:
            answer = await http.post(f"/v1/{surface}", json=asked)
        except httpx.HTTPError:
            self._tally.failed(surface)
            raise
        if answer.status_code != 200:
            self._tally.failed(surface)
            raise _Refused(f"{surface} answered {answer.status_code}: {answer.text[:200]}")
        reply: dict[str, Any] = answer.json()
        self._tally.answered(reply, (time.perf_counter() - began) * 1e3)
        return reply

    async def _report(self, http: httpx.AsyncClient, events: list[dict[str, Any]]) -> None:
        if not events:
            return
        answer = await http.post("/v1/events", json=events)
        if answer.status_code != 202:
            self._tally.failed("events")
            raise _Refused(f"events answered {answer.status_code}: {answer.text[:200]}")

    def _events(
        self,
        user: int,
        reply: Mapping[str, Any],
        shown: Sequence[Item],
        visit: Visit,
        began_ms: int,
    ) -> Iterator[dict[str, Any]]:
        for action in visit.actions:
            event = self._event(
                user, reply, shown[action.slot], action.kind, began_ms + action.offset_ms
            )
            if action.dwell_ms is not None:
                event["dwell_ms"] = action.dwell_ms
            if action.amount_cents is not None:
                event["amount_cents"] = action.amount_cents
            yield event

    def _event(
        self, user: int, reply: Mapping[str, Any], item: Item, kind: str, at_ms: int
    ) -> dict[str, Any]:
        event = {
            "kind": kind,
            "event_id": f"sim:{reply['request_id']}:{item['slot']}:{kind}",
            "user_id": self._truth.people.user_ids[user],
            "event_time_ms": at_ms,
            "surface": reply["surface"],
            "origin": "simulated",
            "request_id": reply["request_id"],
            "impression": item["impression"],
            "video_id": item["video_id"],
            "author_id": item.get("author_id"),
        }
        if kind in ("query_shown", "query_click"):
            event["query"] = item["query"]
        return event


class _Refused(RuntimeError):
    """The gateway answered with an error; the session ends."""


def _known(reply: Mapping[str, Any], items: Mapping[str, CatalogueItem]) -> list[Item]:
    """The reply's items that are films of this world; others are ignored."""
    return [item for item in reply["items"] if item["video_id"] in items]


def _group_of(phase: str, reply: Mapping[str, Any]) -> SlateGroup:
    version = str(reply["models"].get("ranker", NO_RANKER))
    return SlateGroup(phase, version, reply.get("arm") or "")


def _dormant_at_first(truth: Truth) -> np.ndarray:
    """bool [U]: the configured share of users, those whose history ended first."""
    last = dict(truth.data.ratings.group_by("user_id").agg(pl.col("time_ms").max()).iter_rows())
    ended = np.asarray([last[user_id] for user_id in truth.people.user_ids])
    share = truth.world.session.dormant_share
    return np.asarray(ended < np.quantile(ended, share)) if share else np.zeros(len(ended), bool)


def run_until(crowd: Crowd, stopped: threading.Event) -> None:
    """Runs a crowd in this thread until `stopped` is set."""

    async def run() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(crowd.run(stop))
        while not stopped.is_set() and not running.done():
            await asyncio.sleep(0.1)
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(run())
