"""Every served model by name. Adding a system adds a line here.

Knows names and import paths, as strings, so that importing it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from models.recipe import Recipe, Runtime


@dataclass(frozen=True)
class ModelEntry:
    name: str
    recipe: str  # "module:function", the function returns a Recipe
    runtime: str  # "module:Class", a models.recipe.Runtime

    def load_recipe(self) -> Recipe:
        return cast(Recipe, load(self.recipe)())

    def load_runtime(self) -> type[Runtime]:
        return cast(type[Runtime], load(self.runtime))


def load(path: str) -> Any:
    """The attribute that "module:attribute" names."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


CATALOG: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry("ranker", "models.ranking.ple:recipe", "models.ranking.runtime:RankerRuntime"),
        ModelEntry(
            "queries", "models.generation.onebar:recipe", "models.generation.runtime:QueriesRuntime"
        ),
        ModelEntry(
            "reactivation",
            "models.reasoning.rolegen:recipe",
            "models.reasoning.runtime:ReactivationRuntime",
        ),
    )
}
