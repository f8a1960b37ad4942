"""The ranking world: offline evidence for fusion, millions of impressions in seconds.

Knows planted utilities, candidate pools as predictions, and a platform that logs what
it served. It is separate from the live crowd of `deploy.simulation`: that one speaks HTTP to a
running stack, this one is arrays only, so that five seeds of five worlds fit a bench.
"""
