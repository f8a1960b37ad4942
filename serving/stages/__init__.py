"""The stages, one file per kind: hydrators, sources, filters, scorers, selectors.

Each stage knows its own step and nothing of the others. How they are run, and the laws
that they keep, is `serving.pipeline.runner`; which surface uses which is `serving.pipeline.surfaces`.
"""
