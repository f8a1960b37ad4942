"""Health, metrics, traces and the log of served features."""
