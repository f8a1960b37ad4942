"""Bearer tokens of a provider beside API keys, and how often one caller may call."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from serving.clients.oidc import OidcConfig

KEYS = {"secret-key": ["events"]}


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class Provider:
    """An OpenID provider on loopback with one key."""

    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=new_key)
    kid: str = "k1"
    down: bool = False

    def token(self, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        body = {
            "iss": self.url, "aud": "tidemill", "sub": "ann", "exp": time.time() + 600,
            "scope": "openid tidemill:events shop.read",
        } | claims  # fmt: skip
        signed = self.key if key is None else key
        return jwt.encode(body, signed, algorithm, headers={"kid": self.kid})

    def jwks(self) -> dict[str, Any]:
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": self.kid, "alg": "RS256", "use": "sig"}]}


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {
                "/.well-known/openid-configuration": {"jwks_uri": f"{found.url}/keys"},
                "/keys": found.jwks(),
            }
            self.send_response(503 if found.down else 200)
            self.end_headers()
            self.wfile.write(json.dumps(pages[self.path]).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()


@pytest.fixture
def client(provider: Provider, make_harness: Any) -> Any:
    oidc = OidcConfig(provider.url, "tidemill", scopes={"shop.read": "recommend"})
    return make_harness(api_keys=KEYS, oidc=oidc).client


def feed(client: Any, token: str) -> Any:
    headers = {"authorization": f"Bearer {token}"}
    return client.post("/v1/feed", json={"user_id": "u1", "k": 3}, headers=headers)


def test_a_token_gives_the_scopes_that_it_states(client: Any, provider: Provider) -> None:
    assert feed(client, provider.token()).status_code == 200
    refused = feed(client, provider.token(scope="tidemill:events"))
    assert refused.status_code == 403
    assert "recommend" in refused.text
    asks_more = client.get("/metrics", headers={"authorization": f"Bearer {provider.token()}"})
    assert asks_more.status_code == 403
    assert feed(client, "secret-key").status_code == 403  # the key has events only


def test_a_token_of_others_is_refused_and_not_repeated(client: Any, provider: Provider) -> None:
    public = provider.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    hmac_with_public_key = jwt.api_jws.PyJWS()
    hmac_with_public_key._algorithms["HS256"].prepare_key = lambda key: key
    body = jwt.decode(provider.token(), options={"verify_signature": False})
    confused = hmac_with_public_key.encode(
        json.dumps(body).encode(), public, "HS256", headers={"kid": provider.kid}
    )
    tokens = {
        "expired": provider.token(exp=time.time() - 600),
        "for another audience": provider.token(aud="other"),
        "of another issuer": provider.token(iss="http://127.0.0.1:1"),
        "of another key": provider.token(key=new_key()),
        "unsigned": jwt.encode(body, None, "none", headers={"kid": provider.kid}),
        "signed with the public key": confused,
        "without an end": jwt.encode(
            {k: v for k, v in body.items() if k != "exp"}, provider.key, "RS256",
            headers={"kid": provider.kid},
        ),
        "no token": "a.b.c",
    }  # fmt: skip
    for name, token in tokens.items():
        reply = feed(client, token)
        assert reply.status_code == 401, name
        assert token not in reply.text, name


def test_a_key_that_the_provider_adds_is_fetched(client: Any, provider: Provider) -> None:
    assert feed(client, provider.token()).status_code == 200
    provider.key, provider.kid = new_key(), "k2"
    oidc = client.app.state.keys._oidc
    assert feed(client, provider.token()).status_code == 401  # fetched less than 30 s ago
    oidc._fetched -= 60
    assert feed(client, provider.token()).status_code == 200


def test_a_key_that_the_provider_withdraws_ends_to_count(client: Any, provider: Provider) -> None:
    token, oidc = provider.token(), client.app.state.keys._oidc
    assert feed(client, token).status_code == 200
    provider.down = True
    oidc._fetched -= 3_600
    assert feed(client, token).status_code == 200  # while the provider does not answer
    provider.down, oidc._down_until = False, float("-inf")
    provider.key, provider.kid = new_key(), "k2"
    assert feed(client, token).status_code == 401


def test_a_provider_that_is_down_is_named_and_keys_still_work(
    provider: Provider, make_harness: Any
) -> None:
    provider.down = True
    keys = {"secret-key": ["recommend"]}
    client = make_harness(api_keys=keys, oidc=OidcConfig(provider.url, "tidemill")).client
    reply = feed(client, provider.token())
    assert reply.status_code == 503
    assert provider.url in reply.text
    assert feed(client, "secret-key").status_code == 200


def test_a_provider_that_hangs_holds_callers_up_once(make_harness: Any) -> None:
    """A socket that takes connections and never answers."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = make_harness(api_keys=KEYS, oidc=OidcConfig(issuer, "tidemill")).client
    token = jwt.encode({"sub": "a"}, new_key(), "RS256", headers={"kid": "k"})
    assert feed(client, token).status_code == 503
    began = time.monotonic()
    assert [feed(client, token).status_code for _ in range(5)] == [503] * 5
    assert time.monotonic() - began < 2.5  # less than one more time limit
    listener.close()


def test_scopes_of_a_wrong_type_are_none(client: Any, provider: Provider) -> None:
    for stated in (5, {"a": 1}, [1, None], None, True):
        assert feed(client, provider.token(scope=stated)).status_code == 403, stated
    assert feed(client, provider.token(scope=["shop.read"])).status_code == 200


def test_each_caller_has_a_rate_of_its_own(make_harness: Any) -> None:
    keys = {"one": ["recommend", "events"], "two": ["recommend"]}
    client = make_harness(api_keys=keys, rate_limits={"recommend": "3/hour"}).client
    assert [feed(client, "one").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    over = feed(client, "one")
    assert 1 <= int(over.headers["retry-after"]) <= 3_600
    assert "one" not in over.json()["detail"].replace("None", "")
    assert feed(client, "two").status_code == 200
    assert feed(client, "wrong").status_code == 401
