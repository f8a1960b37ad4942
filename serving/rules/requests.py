"""The fields by which a request states a filter and boosts of its own.

Knows their bounds, and that an expression is checked when the request is read. Does not know the
surfaces that have these fields (`serving.surfaces`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serving.pipeline.requests import Request
from serving.rules.definitions import MAX_STRENGTH
from serving.rules.predicate import compile_predicate
from serving.rules.syntax import MAX_REQUEST_LENGTH

MAX_BOOSTS = 20


def _checked(text: str) -> str:
    compile_predicate(text, MAX_REQUEST_LENGTH)
    return text


Condition = Annotated[str, Field(max_length=MAX_REQUEST_LENGTH), AfterValidator(_checked)]
"""A condition on items in CEL (docs/rules.md)."""


class Boost(BaseModel):
    """Promotes the items for which `when` is true, or buries them where `strength` is below 0.

    strength: in standard deviations of the candidates' scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: Condition
    strength: Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)]


class FilteredRequest(Request):
    filter: Condition | None = Field(
        None, description="Only items for which this condition is true, as in item.price < 20."
    )


class RuledRequest(FilteredRequest):
    boosts: Annotated[tuple[Boost, ...], Field(max_length=MAX_BOOSTS)] = ()
