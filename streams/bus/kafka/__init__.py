"""The bus on anything that speaks Kafka's protocol, through librdkafka."""
