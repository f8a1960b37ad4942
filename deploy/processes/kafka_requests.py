"""The process `kafka-requests`: answers requests that arrive on a topic.

Knows the gateway's stages and the bus. Does not know the messages (`serving.kafka_requests`).
"""

from __future__ import annotations

from prometheus_client import REGISTRY

from deploy.processes.lifecycle import Process
from deploy.processes.serving_dependencies import serving_dependencies
from serving import kafka_requests
from serving.gateway import Gateway


def run(process: Process) -> int:
    """Answers requests until stopped."""
    deps = serving_dependencies(process, monitor_every_s=5.0)  # the gateway checks more often
    gateway = Gateway(deps)
    REGISTRY.register(gateway.metrics.registry)
    gateway.start()
    process.ready()
    try:
        kafka_requests.run(
            deps.bus,
            gateway.surfaces,
            process.stop,
            impression_key=deps.config.impression_key,
            replies=gateway.replies,
            metrics=gateway.metrics,
        )
    finally:
        gateway.stop()
    return 0 if process.stop.is_set() else 1
