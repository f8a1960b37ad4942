"""Laws of the gateway's address: a host with colons stands in brackets."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.settings import GatewaySettings, Settings
from deploy.stack import Stack


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
        ("::", "http://[::1]:8080"),
        ("fe80::2", "http://[fe80::2]:8080"),
        ("shop.example", "http://shop.example:8080"),
    ],
)
def test_the_address_can_be_opened_on_this_machine(host: str, url: str) -> None:
    gateway = GatewaySettings(host=host, port=8080)
    assert gateway.url == url
    assert Stack(Settings(gateway=gateway)).page == url


@given(st.ip_addresses(), st.integers(1, 65_535))
def test_every_ip_address_is_read_back_from_the_url(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    parts = urlsplit(GatewaySettings(host=str(host), port=port).url)
    assert parts.port == port
    assert host.is_unspecified or ipaddress.ip_address(parts.hostname or "") == host


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "ftp://x", ""])
def test_a_cors_origin_is_a_scheme_and_a_host(origin: str) -> None:
    assert GatewaySettings(cors_origins=["*", "https://shop.example"]).cors_origins
    with pytest.raises(ValidationError):
        GatewaySettings(cors_origins=[origin])
