"""Callers over loopback: connections that each send one request after the other, and requests that
are sent at a rate, whether the ones before are answered or not.

Knows HTTP/1.1 with a Content-Length, as uvicorn answers. Does not know surfaces. Written on asyncio
streams: a client library would use more CPU than the server that it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import orjson

Body = Callable[[int], dict[str, object]]
"""The body of the n-th request."""
_PATIENT_S = 30.0  # for one reply


@dataclass(frozen=True)
class Load:
    """What the callers saw. latency_ms: float64 [answered]; failed: replies other than 200."""

    seconds: float
    latency_ms: np.ndarray
    failed: int

    @property
    def per_s(self) -> float:
        return len(self.latency_ms) / self.seconds


async def request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str, body: bytes = b""
) -> tuple[int, bytes]:
    """One request on an open connection: (status, body). head: "POST /path"."""
    start = f"{head} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    writer.write(f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    status, length = int(answer[9:12]), 0
    for line in answer.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line[15:])
    return status, await reader.readexactly(length)


def ask(port: int, head: str, body: bytes = b"") -> bytes:
    """One request on a connection of its own. Raises `RuntimeError` for an error's status."""

    async def once() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await request(reader, writer, head, body)
        finally:
            writer.close()

    status, answer = asyncio.run(once())
    if status >= 300:
        raise RuntimeError(f"{head}: {status} {answer[:200]!r}")
    return answer


def measure(port: int, path: str, body: Body, callers: int, seconds: float) -> Load:
    """`callers` connections send requests without a pause for so long."""
    return asyncio.run(_measure(port, path, body, callers, seconds))


async def _measure(port: int, path: str, body: Body, callers: int, seconds: float) -> Load:
    took: list[float] = []
    failed = sent = 0
    started = time.perf_counter()

    async def caller() -> None:
        nonlocal failed, sent
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - started < seconds:
            sent += 1
            raw = orjson.dumps(body(sent))
            before = time.perf_counter()
            status, _ = await request(reader, writer, f"POST {path}", raw)
            if status == 200:
                took.append((time.perf_counter() - before) * 1e3)
            else:
                failed += 1
        writer.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return Load(time.perf_counter() - started, np.array(took), failed)


@dataclass(frozen=True)
class OpenLoad:
    """What was answered at an offered rate. Latencies count from when a request was due.

    accepted_ms, rejected_ms: float64, of replies 200 and 429. failed: other replies, and none.
    """

    per_s: float
    seconds: float
    accepted_ms: np.ndarray
    rejected_ms: np.ndarray
    failed: int

    @property
    def accepted_per_s(self) -> float:
        return len(self.accepted_ms) / self.seconds


def measure_open(port: int, path: str, body: Body, per_s: float, seconds: float) -> OpenLoad:
    """Sends `per_s` requests a second at random times, as many independent users do (a Poisson
    process, the same each time), each on an idle connection or on a new one."""
    return asyncio.run(_measure_open(port, path, body, per_s, seconds))


async def _measure_open(port: int, path: str, body: Body, per_s: float, seconds: float) -> OpenLoad:
    took: dict[int, list[float]] = {200: [], 429: []}
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    failed = 0

    async def send(number: int, due_s: float) -> None:
        nonlocal failed
        try:
            streams = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            raw = orjson.dumps(body(number))
            status, _ = await asyncio.wait_for(request(*streams, f"POST {path}", raw), _PATIENT_S)
        except (OSError, EOFError, TimeoutError):
            failed += 1
            return
        idle.append(streams)
        if status in took:
            took[status].append((time.perf_counter() - due_s) * 1e3)
        else:
            failed += 1

    gaps_s = np.random.default_rng(0).exponential(1 / per_s, int(per_s * seconds))
    started, sent = time.perf_counter(), []
    for number, due_s in enumerate(started + np.cumsum(gaps_s)):
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        sent.append(asyncio.create_task(send(number, due_s)))
    await asyncio.gather(*sent)
    for _, writer in idle:
        writer.close()
    accepted, rejected = np.array(took[200]), np.array(took[429])
    return OpenLoad(per_s, time.perf_counter() - started, accepted, rejected, failed)
