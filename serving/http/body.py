"""Request bodies: their size limit, and `Content-Encoding: gzip`.

Knows ASGI messages. Does not know routes.
"""

from __future__ import annotations

import zlib

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.api.json import json_reply

_PLAIN = ("", "identity")
_GZIP = ("gzip", "x-gzip")


class RequestBody:
    """Decodes bodies, and rejects those above `max_bytes` with 413.

    The limit holds before and after decoding, with and without a Content-Length header.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        try:
            if _content_length(headers) > self._max_bytes:
                raise HTTPException(413, self._too_large())
            if encoding in _GZIP:
                receive = _replay(await self._decoded_gzip(receive), receive)
            elif encoding in _PLAIN:
                receive = self._limited(receive)
            else:
                raise HTTPException(415, f"content-encoding {encoding[:40]!r}: send gzip or none")
        except HTTPException as refusal:
            reply = {"detail": refusal.detail}
            await json_reply(reply, refusal.status_code, {"Connection": "close"})(
                scope, receive, send
            )
            return
        await self._app(scope, receive, send)

    def _limited(self, receive: Receive) -> Receive:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return limited

    async def _decoded_gzip(self, receive: Receive) -> bytes:
        limited, raw = self._limited(receive), bytearray()
        while True:
            message = await limited()
            raw += message.get("body", b"")
            if not message.get("more_body", False):
                break
        try:
            return _gunzip(bytes(raw), self._max_bytes)
        except zlib.error as error:
            raise HTTPException(400, f"the body is not gzip: {error}") from error
        except OverflowError:
            raise HTTPException(413, self._too_large()) from None

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_bytes >> 20} MiB: send it in parts"


def _gunzip(raw: bytes, max_bytes: int) -> bytes:
    """All members of a gzip file.

    Raises:
        OverflowError: they decode to more than `max_bytes`; no more than that is decoded.
        zlib.error: they are not gzip, or incomplete.
    """
    decoded = bytearray()
    while raw:
        member = zlib.decompressobj(wbits=31)  # 31: gzip's header and checksum
        decoded += member.decompress(raw, max_bytes + 1 - len(decoded))
        if len(decoded) > max_bytes:
            raise OverflowError
        if not member.eof:
            raise zlib.error("it ends early")
        raw = member.unused_data
    return bytes(decoded)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive`, preceded by a message with the whole body."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _content_length(headers: dict[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0
