"""The stages, one file per kind: hydrators, sources, filters, scorers, selectors.

Each stage knows its own step and none of the others. `serving.pipeline.runner` runs them
and enforces their laws; `serving.surfaces` says which surface uses which.
"""
