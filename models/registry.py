"""Every served model by name. Adding a system adds a line here.

Knows names and import paths, as strings, so that importing it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from models.recipe import Recipe, Runtime
from models.release.bundle import Bundle
from models.signature import Signature


@dataclass(frozen=True)
class ModelEntry:
    name: str
    recipe: str  # "module:function", the function returns a Recipe
    runtime: str  # "module:Class", a models.recipe.Runtime
    signature: str  # "module:NAME", light to import: what this code sends and expects

    def load_recipe(self) -> Recipe:
        return cast(Recipe, load(self.recipe)())

    def load_runtime(self) -> type[Runtime]:
        return cast(type[Runtime], load(self.runtime))

    def load_signature(self) -> Signature:
        return cast(Signature, load(self.signature))


def load(path: str) -> Any:
    """The attribute that "module:attribute" names."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


CATALOG: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "ranker",
            "models.ranking.ple.recipe:recipe",
            "models.ranking.ple.runtime:RankerRuntime",
            "models.ranking.ple.inputs:SIGNATURE",
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


def misfit(bundle: Bundle) -> str:
    """Why this code cannot serve or teach a sealed bundle, and what to do; "" where it can.

    A bundle answers to the signature that it was sealed with; requests are made by this code's.
    """
    entry = CATALOG.get(bundle.model)
    if entry is None or bundle.signature == entry.load_signature():
        return ""
    names = ", ".join(entry.load_signature().differing(bundle.signature))
    return (
        f"{bundle.model} version {bundle.version} was trained for another signature ({names} "
        f"differ): `tidemill models train {bundle.model}`, then `tidemill models promote`"
    )
