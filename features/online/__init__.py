"""The online store: Feast's Redis format, written by lease or compare-and-set."""
