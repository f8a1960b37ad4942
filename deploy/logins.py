"""Whether broker and store answer, and whether they accept the logins of the settings.

Knows both clients. Does not wait for a server that is down: its clients do.
"""

from __future__ import annotations

from collections.abc import Iterator

from deploy import wiring
from deploy.services.tansu import answers_metadata
from deploy.services.valkey import answers_ping
from deploy.settings import Settings
from deploy.settings.connections import BrokerSecuritySettings, StoreSecuritySettings


def refusals(settings: Settings, timeout_s: float = 10.0) -> Iterator[tuple[str, str]]:
    """The part ("broker" or "store") and what to correct, for each login that is refused."""
    if settings.broker.security != BrokerSecuritySettings():
        from streams.bus.kafka.login import LoginRefused, refuse_bad_login

        servers = settings.broker.bootstrap_servers
        try:
            refuse_bad_login(servers, wiring.kafka_login(settings), timeout_s)
        except LoginRefused as refused:
            yield "broker", str(refused)
    if settings.store.kind == "external" and (text := _store_refusal(settings, timeout_s)):
        yield "store", text


def _store_refusal(settings: Settings, timeout_s: float) -> str:
    from features.online.connection import Connection, StoreRefused
    from features.store import StoreDown

    store = settings.store
    connection = Connection(store.address, store.db, timeout_s, wiring.store_login(settings))
    try:
        with connection.errors_as_store_down():
            connection.client.ping()
    except StoreRefused as refused:
        return str(refused)
    except StoreDown:
        return ""
    finally:
        connection.client.close()
    return ""


def broker_answers(settings: Settings, timeout_s: float = 1.0) -> bool:
    login = wiring.kafka_login(settings).client_config()
    return answers_metadata(settings.broker.bootstrap_servers, timeout_s, login)


def store_answers(settings: Settings, timeout_s: float = 0.5) -> bool:
    if settings.store.security == StoreSecuritySettings():
        return answers_ping(settings.store.address, timeout_s)
    from features.online.connection import Connection

    store = settings.store
    connection = Connection(store.address, store.db, timeout_s, wiring.store_login(settings))
    try:
        return connection.ping()
    finally:
        connection.client.close()


def store_address(settings: Settings) -> str:
    """Where the store is, or who knows it."""
    return settings.store.address or settings.store.security.sentinels
