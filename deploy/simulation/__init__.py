"""The simulated world: replayed histories, the crowd that reacts, and its planted truth.

Knows the event contract and the HTTP API. No other package may import it, so that no feature
and no model can read the planted truth. Every event has the origin `replayed` or `simulated`.
"""
