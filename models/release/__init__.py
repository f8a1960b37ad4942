"""Releases: bundles on disk, promotion, Triton's model repository, models in process."""
