"""Topics with user data have a retention time; the others are kept forever."""

from __future__ import annotations

from confluent_kafka.admin import AdminClient, ConfigResource

from streams.bus.kafka.bus import KafkaBus
from streams.contract import topics
from streams.contract.topics import ERASED_WITHIN_MS, FOREVER, RETENTION_MS, topic_specs

WITHOUT_USERS = {topics.CATALOGUE, topics.MODELS_PUBLISHED}


def _config(servers: str, name: str) -> dict[str, str]:
    asked = ConfigResource(ConfigResource.Type.TOPIC, name)
    client = AdminClient({"bootstrap.servers": servers})
    answer = client.describe_configs([asked])[asked].result(timeout=10)
    return {key: entry.value for key, entry in answer.items()}


def test_kafka_drops_user_data_and_keeps_erasures(wiped_kafka: str) -> None:
    KafkaBus(wiped_kafka).ensure_topics(topic_specs(2))
    for spec in topic_specs(2):
        config = _config(wiped_kafka, spec.name)
        assert config["cleanup.policy"] == "delete"
        if spec.name in WITHOUT_USERS | {topics.ERASURES}:
            assert int(config["retention.ms"]) == FOREVER
        else:
            gone_after = int(config["retention.ms"]) + int(config["segment.ms"])
            assert gone_after <= ERASED_WITHIN_MS, spec.name


def test_an_existing_topic_keeps_its_settings(wiped_kafka: str) -> None:
    short = topics.TopicSpec(topics.BEHAVIOUR, 2, retention_ms=60_000)
    KafkaBus(wiped_kafka).ensure_topics([short])
    KafkaBus(wiped_kafka).ensure_topics(topic_specs(2))
    assert _config(wiped_kafka, topics.BEHAVIOUR)["retention.ms"] == "60000"
    assert _config(wiped_kafka, topics.ADMITTED)["retention.ms"] == str(RETENTION_MS)
