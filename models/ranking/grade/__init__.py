"""GRADE: each user's own fusion weights over the tasks of the ranker."""
