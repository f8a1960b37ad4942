"""The servers of the suite: one Apache Kafka and one Valkey, which may be killed.

Knows how to kill, restart and empty them. Does not know the stack's processes.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from confluent_kafka.admin import AdminClient

from deploy.services.kafka import Kafka
from deploy.services.process import Child, start
from deploy.services.valkey import Valkey
from streams.contract.topics import topic_specs


@dataclass
class Servers:
    """A broker and a store; both keep their ports after a kill."""

    kafka: Kafka
    valkey: Valkey
    broker: Child
    store: Child

    @classmethod
    def started(cls, folder: Path) -> Servers:
        kafka, valkey = Kafka(folder, folder / "kafka"), Valkey(folder)
        return cls(kafka, valkey, start(kafka, 120.0), start(valkey))

    def kill_broker(self) -> None:
        """SIGKILL; its disk stays."""
        self.broker.kill()

    def start_broker(self) -> None:
        self.broker = start(self.kafka, 120.0)

    def kill_store(self) -> None:
        """SIGKILL, and an empty one in its place."""
        self.store.kill()
        self.store = start(self.valkey)

    def freeze_store(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        os.kill(self.store.pid, signal.SIGSTOP)

    def thaw_store(self) -> None:
        os.kill(self.store.pid, signal.SIGCONT)

    def empty(self) -> None:
        """Deletes all topics and rows."""
        self.thaw_store()
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})
        delete_topics(admin)
        with redis.Redis(port=self.valkey.port) as client:
            client.flushall()

    def stop(self) -> None:
        self.broker.stop(), self.store.stop()


def delete_topics(admin: AdminClient) -> None:
    """Deletes every topic of a stack, and waits until the broker no longer lists them."""
    names = {spec.name for spec in topic_specs(1)}
    if present := sorted(names & admin.list_topics(timeout=10).topics.keys()):
        for future in admin.delete_topics(present).values():
            future.result(timeout=10)
    while names & admin.list_topics(timeout=10).topics.keys():
        time.sleep(0.05)
