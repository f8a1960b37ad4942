"""Callers over loopback: connections that each send one request after the other.

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
