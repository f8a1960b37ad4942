"""Every served model by name. Adding a model adds one entry.

Knows names, kinds and import paths, as strings. Importing it imports no torch. Does not know
bundles. Models of one kind are asked and answer alike, so the settings may choose which of them
serves (`models.serve`); all of them can be trained, live and watched side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np

from models.recipe import Recipe, Runtime, ServingExample
from models.signature import Signature

Tensors = dict[str, np.ndarray]
Fake = Callable[[Mapping[str, np.ndarray]], Tensors]


@dataclass(frozen=True)
class ModelSpec:
    """One served model. Paths are "module:attribute".

    Training, releases, serving, the monitor, the fakes and the contract suite derive from this.
    A second model of a kind is `dataclasses.replace` of the first, with its own name, recipe and
    runtime, and with what else differs.
    """

    name: str
    kind: str  # what serving asks for; the model of that name serves unless settings choose
    recipe: str  # a function without arguments that returns a Recipe
    runtime: str  # a Runtime class
    signature: str  # the signature of this code's requests; light to import
    assemble: str  # what serving read -> request tensors; its arguments are those of the kind
    canary: str  # a ServingExample -> request tensors
    fake: str  # request tensors -> plausible, repeatable outputs, for tests
    update: str = ""  # a function without arguments that returns a Challenge; "": no updates
    # Tensors with one row per candidate: the outputs differ where the inputs do.
    candidate_inputs: tuple[str, ...] = ()
    candidate_outputs: tuple[str, ...] = ()
    aligned_outputs: tuple[str, ...] = ()  # with as many columns as each other: the first's
    later_outputs: tuple[str, ...] = ()  # that sealed bundles of before do not state
    streams: bool = False  # its runtime is a `models.stream.StreamRuntime`

    def unmet_by(self, sealed: Signature) -> tuple[str, ...]:
        """The tensors by which a sealed bundle does not fit this code's requests."""
        return self.load_signature().unmet_by(sealed, self.later_outputs)

    def load_recipe(self) -> Recipe:
        return cast(Recipe, import_attribute(self.recipe)())

    def load_runtime(self) -> type[Runtime]:
        return cast(type[Runtime], import_attribute(self.runtime))

    def load_signature(self) -> Signature:
        return cast(Signature, import_attribute(self.signature))

    def load_assemble(self) -> Callable[..., Tensors]:
        return cast(Callable[..., Tensors], import_attribute(self.assemble))

    def load_canary(self) -> Callable[[ServingExample], Tensors]:
        return cast(Callable[[ServingExample], Tensors], import_attribute(self.canary))

    def load_fake(self) -> Fake:
        return cast(Fake, import_attribute(self.fake))


MOVED_MODULES = {"models.ranking.runtime": "models.ranking.ple.runtime"}
"""Where modules that sealed bundles name stand today: old path -> new path."""


def import_attribute(path: str) -> Any:
    """The attribute that "module:attribute" names; a module that has moved is found."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(moved(module)), attribute)


def moved(module: str) -> str:
    """Where a module that a sealed bundle names stands today."""
    return MOVED_MODULES.get(module, module)


RANKER = ModelSpec(
    name="ranker",
    kind="ranker",
    recipe="models.ranking.ple.recipe:recipe",
    runtime="models.ranking.ple.runtime:RankerRuntime",
    signature="models.ranking.ple.inputs:SIGNATURE",
    assemble="models.ranking.ple.inputs:assemble_request",
    canary="models.ranking.ple.inputs:example_request",
    fake="models.ranking.fake:fake_ranker",
    update="models.alignment.ranker:ranker_update",
    candidate_inputs=("video_x",),
    candidate_outputs=("p", "score"),
    aligned_outputs=("p", "weights", "alpha", "rates", "tasks"),
    later_outputs=("tasks",),
)
QUERIES = ModelSpec(
    name="queries",
    kind="queries",
    recipe="models.generation.recipe:recipe",
    runtime="models.generation.runtime:QueriesRuntime",
    signature="models.generation.inputs:SIGNATURE",
    assemble="models.generation.inputs:assemble_request",
    canary="models.generation.inputs:example_request",
    fake="models.generation.fake:fake_queries",
    streams=True,
    update="models.alignment.surfaces.queries:queries_update",
)
REACTIVATION = ModelSpec(
    name="reactivation",
    kind="reactivation",
    recipe="models.reasoning.recipe:recipe",
    runtime="models.reasoning.runtime:ReactivationRuntime",
    signature="models.reasoning.inputs:SIGNATURE",
    assemble="models.reasoning.inputs:assemble_request",
    canary="models.reasoning.inputs:example_request",
    fake="models.reasoning.fake:fake_reactivation",
    update="models.alignment.surfaces.reactivation:reactivation_update",
)

REGISTRY: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        RANKER,
        QUERIES,
        REACTIVATION,
    )
}


def streams(model: str) -> bool:
    """Whether the model can give an answer in parts; False for one that is not registered."""
    spec = REGISTRY.get(model)
    return spec is not None and spec.streams


def serving_problem(kind: str, model: str) -> str:
    """Why `model` cannot serve as a `kind`; "" where it can."""
    kinds = sorted({spec.kind for spec in REGISTRY.values()})
    if kind not in kinds:
        return f"{kind!r} is none of the kinds {', '.join(kinds)}"
    fitting = [spec.name for spec in REGISTRY.values() if spec.kind == kind]
    return "" if model in fitting else f"{model!r} is no {kind}; these are: {', '.join(fitting)}"
