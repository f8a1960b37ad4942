"""The bus: records in, records out. One contract, on Kafka and in memory."""
