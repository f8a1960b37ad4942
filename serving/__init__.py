"""Serving: from request to slate, over HTTP and over Kafka.

Knows `models`, `features` and `streams`. Does not know training or deployment, and never
imports torch.
"""
