"""Every served model by name. Adding a model adds one entry.

Knows names and import paths, as strings. Importing it imports no torch. Does not know bundles.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from models.recipe import Recipe, Runtime
from models.signature import Signature


@dataclass(frozen=True)
class ModelEntry:
    """One served model. Paths are "module:attribute"."""

    name: str
    recipe: str  # a function without arguments that returns a Recipe
    runtime: str  # a Runtime class
    signature: str  # the signature of this code's requests; light to import
    # Tensors with one row per candidate: the outputs differ where the inputs do.
    candidate_inputs: tuple[str, ...] = ()
    candidate_outputs: tuple[str, ...] = ()

    def load_recipe(self) -> Recipe:
        return cast(Recipe, import_attribute(self.recipe)())

    def load_runtime(self) -> type[Runtime]:
        return cast(type[Runtime], import_attribute(self.runtime))

    def load_signature(self) -> Signature:
        return cast(Signature, import_attribute(self.signature))


MOVED_MODULES = {"models.ranking.runtime": "models.ranking.ple.runtime"}
"""Where modules that sealed bundles name stand today: old path -> new path."""


def import_attribute(path: str) -> Any:
    """The attribute that "module:attribute" names; a module that has moved is found."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(moved(module)), attribute)


def moved(module: str) -> str:
    """Where a module that a sealed bundle names stands today."""
    return MOVED_MODULES.get(module, module)


REGISTRY: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "ranker",
            "models.ranking.ple.recipe:recipe",
            "models.ranking.ple.runtime:RankerRuntime",
            "models.ranking.ple.inputs:SIGNATURE",
            candidate_inputs=("video_x",),
            candidate_outputs=("p", "score"),
        ),
        ModelEntry(
            "queries",
            "models.generation.recipe:recipe",
            "models.generation.runtime:QueriesRuntime",
            "models.generation.inputs:SIGNATURE",
        ),
        ModelEntry(
            "reactivation",
            "models.reasoning.recipe:recipe",
            "models.reasoning.runtime:ReactivationRuntime",
            "models.reasoning.inputs:SIGNATURE",
        ),
    )
}
