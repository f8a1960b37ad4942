"""Several processes of the gateway on one port, started from one state.

`pool` starts and restarts them, `worker` is one of them, `board` is what they know of each other.
"""
