"""Folded facts: what is computed per user, video, author and query, and how Feast keeps it.

Knows `streams`. Does not know models or requests.
"""
