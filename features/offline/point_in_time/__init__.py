"""The point-in-time join: what the online reader would have returned at past moments."""
