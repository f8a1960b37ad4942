"""Faust as the driver of a worker."""
