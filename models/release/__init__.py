"""Releases: bundles on disk, promotion, Triton's repository, models in process."""
