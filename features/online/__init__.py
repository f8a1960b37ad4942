"""The online store: Feast's Redis format, written by compare-and-set."""
