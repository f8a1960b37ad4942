"""Settings section `[models]`: which model of a kind serves.

Knows the registered models. Does not know who serves (`deploy.processes.serving_dependencies`).
"""

from __future__ import annotations

from pydantic import Field, field_validator

from deploy.settings.values import Section
from models.registry import serving_problem


class ModelsSettings(Section):
    # Kind -> model, such as ranker = "popularity_ranker"; default: the model of the kind's name.
    serve: dict[str, str] = Field(default_factory=dict)

    @field_validator("serve")
    @classmethod
    def _name_models_of_the_kind(cls, serve: dict[str, str]) -> dict[str, str]:
        for kind, model in serve.items():
            if problem := serving_problem(kind, model):
                raise ValueError(problem)
        return serve
