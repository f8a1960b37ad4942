"""Clients of other parts: Triton, the bus for writes, and their circuit breakers."""
