"""The multi-task ranker (PLE). README.md is its model card."""
