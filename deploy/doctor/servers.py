"""Broker, store, model server and gateway of a running stack: whether each answers now.

Knows addresses and how a server that is down differs from one that is frozen. Does not know the
stack's own processes (`deploy.doctor.processes`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from deploy import logins
from deploy.doctor.finding import Finding, healthy, sick
from deploy.services.triton import answers_http
from deploy.settings import Settings

_TIMEOUT_S = 3.0
_SETTING = {
    "broker": "broker.bootstrap_servers",
    "store": "store.address",
    "triton": "triton.http_address",
}
_SELF_CHECKED = ("broker", "store")  # asked directly, not only through the gateway


def examine(settings: Settings) -> Iterator[Finding]:
    """Each server in the order in which the others need them."""
    broker, store, triton = settings.broker, settings.store, settings.triton
    servers = broker.bootstrap_servers
    for name, refusal in logins.refusals(settings, _TIMEOUT_S):
        yield sick(name, refusal, "correct it in the settings and start the stack again")
    answers = logins.broker_answers(settings, _TIMEOUT_S)
    yield _server("broker", servers, answers, broker.kind)
    answers = logins.store_answers(settings, _TIMEOUT_S)
    yield _server("store", logins.store_address(settings), answers, store.kind)
    if triton.kind != "in_process":
        ready = answers_http(f"http://{triton.http_address}/v2/health/ready", _TIMEOUT_S)
        yield _server("triton", triton.http_address, ready, triton.kind)
    yield from _gateway(settings)


def _server(name: str, address: str, answers: bool, kind: str) -> Finding:
    if answers:
        return healthy(name, f"answers at {address}")
    elsewhere = f"look at it where it runs, or correct {_SETTING.get(name)}"
    if _listens(address):
        return sick(
            name,
            f"accepts connections at {address} and does not answer: it is frozen or overloaded",
            elsewhere
            if kind == "external"
            else "kill its process (`tidemill status` shows the pid): it is started again",
        )
    return sick(
        name,
        f"nothing listens at {address}: it is down",
        elsewhere
        if kind == "external"
        else f"the stack starts it again; if it ends again, logs/{name}.log in the home says why",
    )


def _listens(addresses: str) -> bool:
    for address in addresses.split(","):
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S):
                return True
        except (OSError, ValueError):
            continue
    return False


def _gateway(settings: Settings) -> Iterator[Finding]:
    url = settings.gateway.url
    parts = _health(f"{url}/healthz")
    if parts is None:
        address = url.removeprefix("http://")
        yield _server("gateway", address, False, "own")
        return
    yield healthy("gateway", f"answers at {url}")
    for name, part in parts.items():
        if part.get("status") != "up":
            yield _unhealthy(name, str(part.get("reason") or "it is down"))


def _health(url: str) -> Mapping[str, Mapping[str, Any]] | None:
    """The parts of `/healthz`; None without an answer."""
    try:
        parts: Mapping[str, Mapping[str, Any]] = httpx.get(url, timeout=_TIMEOUT_S).json()["parts"]
        return parts
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError):
        return None


def _unhealthy(name: str, reason: str) -> Finding:
    if name == "models":
        remedy = (
            "the gateway reloads a model that fails its canary; if that does not help, read "
            "logs/triton.log in the home, or `tidemill models rollback`"
        )
    elif name in _SELF_CHECKED:
        remedy = "if it answers here, the gateway cannot reach it: compare its settings, restart it"
    else:
        remedy = "read logs/gateway.log in the home; `tidemill models rollback` if it began then"
    return sick(f"{name} (as the gateway sees it)", reason, remedy)
