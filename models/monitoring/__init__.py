"""Monitoring of served models: what was served, and its skew from training."""
