"""Health checks, metrics, canaries and the log of served features."""
