"""Both Kafka clients log in to a broker that demands it, and say what is wrong where they cannot."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streams.bus.contract import Outgoing
from streams.bus.delivery import Delivery
from streams.bus.kafka.bus import KafkaBus
from streams.bus.kafka.login import LoginRefused, refuse_bad_login
from streams.contract.schema import to_ipc
from streams.contract.topics import TopicSpec
from streams.workers.config import WorkerConfig
from streams.workers.worker import run_worker

LOGINS = ("plain", "clear", "scram", "token", "certificate")
Build = Callable[[list[dict[str, object]]], pa.Table]


@pytest.mark.parametrize("name", LOGINS)
def test_a_batch_passes_both_clients(
    name: str, secure_broker: Any, event_table: Build, tmp_path: Path
) -> None:
    servers, login = secure_broker.addresses[name], secure_broker.logins[name]
    refuse_bad_login(servers, login)
    bus, topic = KafkaBus(servers, login=login), f"secure-{uuid.uuid4().hex}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    producer = bus.producer(f"writer-{topic}")  # in a transaction
    producer.send([Outgoing(topic, to_ipc(event_table([{"user_id": "ann"}]).to_batches()[0]))])
    producer.close()
    stop, seen = threading.Event(), list[str]()

    def handle(delivery: Delivery) -> None:
        seen.extend(delivery.table["user_id"].to_pylist())
        stop.set()

    watchdog = threading.Timer(60.0, stop.set)
    watchdog.start()
    config = WorkerConfig(bootstrap_servers=servers, data_dir=tmp_path, login=login)
    worker = threading.Thread(
        target=run_worker, args=(f"worker-{topic}", {topic: handle}, config), kwargs={"stop": stop}
    )
    worker.start()
    worker.join(90.0)
    watchdog.cancel()
    assert seen == ["ann"]


def test_both_clients_ask_for_tokens(secure_broker: Any, tokens: Any) -> None:
    """Runs after the login with a token: librdkafka and httpx have both been granted one."""
    refuse_bad_login(secure_broker.addresses["token"], secure_broker.logins["token"])
    assert any("httpx" not in agent for agent in tokens.granted)


@pytest.mark.parametrize(
    ("name", "changes", "correct"),
    [
        ("plain", {"password": "wrong"}, "password"),
        ("scram", {"password": "wrong"}, "password"),
        ("scram", {"username": "stranger"}, "username"),
        ("clear", {"password": "wrong"}, "password"),
        ("plain", {"ca_file": ""}, "ca_file"),
        ("certificate", {"certificate_file": "", "key_file": ""}, "certificate_file"),
        ("certificate", {"key_file": "/nowhere.key"}, "certificate_file"),
    ],
)
def test_a_refused_login_says_what_to_correct(
    name: str, changes: dict[str, str], correct: str, secure_broker: Any
) -> None:
    login = replace(secure_broker.logins[name], **changes)
    with pytest.raises(LoginRefused) as refused:
        refuse_bad_login(secure_broker.addresses[name], login)
    text = str(refused.value)
    assert correct in text
    assert "wrong" not in text
    assert secure_broker.logins["plain"].password not in text + repr(login)


def test_a_broker_that_is_down_is_not_a_refusal(free_port: int, secure_broker: Any) -> None:
    refuse_bad_login(f"127.0.0.1:{free_port}", secure_broker.logins["plain"], timeout_s=1.0)
