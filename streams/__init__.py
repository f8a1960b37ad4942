"""Events: the wire format, ingest, dead letters, the event log and feedback.

Knows events, topics and the bus. Does not know features, models or requests.
"""
