"""Clients of Triton and of the bus, and the circuit breakers in front of them."""
