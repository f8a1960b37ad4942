"""GRADE: each user's own fusion weights over the ranker's tasks. README.md is its model card."""
