"""The simulated world: replayed histories, the crowd that reacts, and its planted truth.

Knows the event contract and the HTTP shapes. No other package may import it, so
that no feature and no model can see what was planted. Everything it emits carries
the origin `replayed` or `simulated`.
"""
