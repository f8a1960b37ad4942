"""Sizes that the folding and writing processes share.

Knows numbers and their reasons. Does not know settings: these are measured, not chosen by users.
"""

COMBINED_BYTES = 10_000_000  # of queued messages that are handled as one batch
BEHIND_S = 2.0  # the longest that a lagging partition waits to combine more messages
CACHED_ROWS = 100_000  # of an entity in a folding process, about 2 kB each
