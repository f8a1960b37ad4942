"""Answers: request to slate, over HTTP and over Kafka.

Knows `models`, `features` and `streams`. Does not know how anything is trained,
and never imports torch.
"""
