"""Settings choose which model of a kind answers; the other stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploy.settings import SettingsError, load
from models.registry import RANKER, REGISTRY
from serving.fakes import ANSWERS


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> str:
    """A second ranker."""
    monkeypatch.setitem(REGISTRY, "second", replace(RANKER, name="second"))
    return "second"


@pytest.mark.parametrize("chosen", ["ranker", "second"])
def test_the_chosen_ranker_is_asked_at_its_own_version(
    make_harness: Any, second: str, chosen: str
) -> None:
    harness = make_harness(serving_models={"ranker": chosen}, streams=False)
    harness.models.answers[second] = ANSWERS["ranker"]
    harness.models.loaded[second] = (4,)
    harness.releases.found[-1].models[second] = 4
    harness.gateway.releases.refresh()
    harness.models.calls.clear()
    reply = harness.feed()
    assert reply["fallbacks"] == []
    assert set(harness.models.calls) == {(chosen, {"ranker": 1, "second": 4}[chosen])}
    assert harness.client.get("/v1/users/u1").json()["ranker"]["version"] == reply["models"][chosen]


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        ({"ranker": "queries"}, "'queries' is no ranker; these are: ranker"),
        ({"ranker": "oracle"}, "'oracle' is no ranker"),
        ({"oracle": "ranker"}, "'oracle' is none of the kinds queries, ranker, reactivation"),
    ],
)
def test_a_model_that_cannot_serve_is_an_error_that_names_those_that_can(
    serve: dict[str, str], why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        load(models={"serve": serve})


def test_a_model_of_the_kind_is_accepted(second: str) -> None:
    assert load(models={"serve": {"ranker": second}}).models.serve == {"ranker": second}
