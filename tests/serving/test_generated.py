"""Laws of trajectories and suggested queries: whole paths, and no query that is taken down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.reasoning.fake import fake_reactivation
from models.signature import byte_list, text_list
from serving.state.blocked_queries import BlockedQueries


@pytest.fixture
def dormant(harness: Any) -> Any:
    for item in ("v1", "v2", "v3"):
        harness.send_event("like", item)
    harness.wait_until(lambda: len(harness.engaged()) == 3)
    return harness


def trajectory(harness: Any, k: int = 6) -> dict[str, Any]:
    reply = harness.client.post("/v1/reactivation", json={"user_id": "u1", "k": k})
    found: dict[str, Any] = reply.json()
    return found


def ids(reply: dict[str, Any]) -> list[str]:
    return [item["video_id"] for item in reply["items"]]


@pytest.mark.parametrize("k", [1, 2, 6, 20])
def test_a_reply_shows_the_whole_path_to_its_goal(dormant: Any, k: int) -> None:
    reply = trajectory(dormant, k)
    assert len(ids(reply)) == k
    assert reply["goal"]["video_id"] == ids(reply)[-1]
    assert reply["goal"]["shown"] is True
    assert reply["items"][-1]["role"] == "converter"
    others = [goal["video_id"] for goal in reply["other_goals"]]
    assert others
    assert not set(others) & set(ids(reply))


def test_items_taken_down_are_planned_around(dormant: Any) -> None:
    before = trajectory(dormant)
    goal, step = before["goal"]["video_id"], ids(before)[1]
    for gone in (goal, step):
        assert dormant.client.delete(f"/v1/catalogue/{gone}").status_code == 202
        dormant.wait_until(lambda gone=gone: not dormant.gateway.catalogue.available(gone))
    after = trajectory(dormant)
    assert not {goal, step} & set(ids(after))
    assert len(ids(after)) == 6
    assert after["goal"]["video_id"] == ids(after)[-1]
    assert after["removed"] == []


def test_a_path_over_an_unknown_item_is_planned_again_without_it(dormant: Any) -> None:
    asked = []

    def answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = fake_reactivation(inputs)
        excluded = text_list(inputs["unavailable"])
        asked.append(excluded)
        if "unknown" not in excluded:
            found["video_id"][-1] = found["goal"][0] = b"unknown"
        return found

    dormant.models.answers["reactivation"] = answer
    reply = trajectory(dormant)
    assert asked == [[], ["unknown"]]
    assert reply["goal"]["video_id"] == ids(reply)[-1] != "unknown"


def test_a_reply_without_its_goal_says_so(dormant: Any) -> None:
    def answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = fake_reactivation(inputs)
        return (
            found
            | {"video_id": byte_list([*text_list(found["video_id"])[:-1], "unknown"])}
            | {"goal": byte_list(["unknown"])}
        )

    dormant.models.answers["reactivation"] = answer
    reply = trajectory(dormant)
    assert (reply["goal"]["video_id"], reply["goal"]["shown"]) == ("unknown", False)
    assert len(ids(reply)) == 5
    assert [each["video_id"] for each in reply["removed"]] == ["unknown"]


def suggested(harness: Any, k: int = 8) -> list[dict[str, Any]]:
    body = {"user_id": "u1", "video_id": "v8", "k": k, "seed": 1}
    found: list[dict[str, Any]] = harness.client.post("/v1/queries", json=body).json()["items"]
    return found


def block(harness: Any, query: str, method: str = "PUT") -> dict[str, Any]:
    reply = harness.client.request(method, "/v1/queries/blocked", json={"query": query})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize("models_down", [False, True])
def test_a_blocked_query_is_neither_generated_nor_offered(harness: Any, models_down: bool) -> None:
    harness.models.down = models_down
    before = [item["query"] for item in suggested(harness)]
    gone = before[0]
    assert block(harness, f"  {gone.upper()}!") == {
        "query": f"  {gone.upper()}!",
        "blocked": True,
        "changed": True,
    }
    assert gone not in [item["query"] for item in suggested(harness)]
    assert harness.client.get("/v1/queries/blocked").json()["blocked"] == [f"  {gone.upper()}!"]
    assert block(harness, gone)["changed"] is False
    assert block(harness, gone, "DELETE")["changed"] is True
    assert [item["query"] for item in suggested(harness)] == before


def test_a_model_that_generates_a_blocked_query_is_filtered(harness: Any) -> None:
    block(harness, "never this")
    seen = []

    def stubborn(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(text_list(inputs["blocked"]))
        texts = byte_list(["never this", "but this"])
        zeros = np.zeros(2, np.float32)
        return {"query": texts, "score": zeros, "anchor": zeros.astype(np.int64)}

    harness.models.answers["queries"] = stubborn
    assert [item["query"] for item in suggested(harness)] == ["but this"]
    assert ["never this"] in seen


def test_a_suggestion_states_whether_it_was_clicked_under_the_item(harness: Any) -> None:
    harness.send_event("query_click", "v8", query="noir classics")
    harness.wait_until(
        lambda: any(i["query"] == "noir classics" and i["anchor"] for i in suggested(harness))
    )
    assert not all(item["anchor"] for item in suggested(harness))


def test_an_invalid_blocked_query_is_rejected_naming_the_field(harness: Any) -> None:
    for body in ({"query": ""}, {"query": "x" * 257}, {"query": 3}, {"text": "x"}):
        reply = harness.client.put("/v1/queries/blocked", json=body)
        assert reply.status_code == 422
        assert reply.json()["detail"][0]["field"] in ("query", "text")


def test_blocked_queries_survive_a_restart_and_reach_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "state" / "blocked.json"
    mine, other = BlockedQueries(path), BlockedQueries(path)
    assert mine.add("Film noir")
    assert other.blocks("film  NOIR")
    assert other.add("zebra")
    assert mine.texts() == ("Film noir", "zebra")
    assert BlockedQueries(path).texts() == ("Film noir", "zebra")
    assert mine.remove("film noir")
    assert not other.blocks("Film noir")
    assert other.remove("film noir") is False


def test_a_damaged_list_keeps_the_last_one_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "blocked.json"
    blocked = BlockedQueries(path)
    blocked.add("film noir")
    path.write_text("{not json")
    assert blocked.blocks("film noir")
    assert str(path) in caplog.text
    assert BlockedQueries(path).texts() == ()
    assert blocked.add("another")
    assert BlockedQueries(path).texts() == ("another", "film noir")
