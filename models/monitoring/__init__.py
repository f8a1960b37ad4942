"""Monitoring of served models: the log of served features, and training-serving skew."""
