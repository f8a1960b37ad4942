"""Laws of experiments on the real gateway: assignment, exposure, holdout, canary, teams, guard.

Started over HTTP, served, answered with events over the real ingest, and judged on the feedback.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.alignment.interleaving import team_draft
from models.experiments.definition import Arm, Experiment, ExperimentError, Guard, in_holdout
from models.experiments.evaluation import Evaluator, described
from models.experiments.store import ExperimentStore
from models.release.store import Manifest
from serving.pipeline.arms import draft_chances
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.codec.batches import read_batch
from streams.contract.clock import WallClock
from streams.contract.impression import HOLDOUT_ARM, POPULARITY_ARM, Impression, verify
from streams.contract.topics import EVENTS_BY_USER
from streams.feedback.store import FeedbackStore

KEY = bytes(range(32))
USERS = [f"user-{number}" for number in range(4_000)]
HALVES = (Arm("ranker", 0.5), Arm(POPULARITY_ARM, 0.5, "popularity"))
CANARY = {
    "name": "canary-2",
    "arms": [
        {"name": "ranker", "share": 0.5, "policy": "live"},
        {"name": "challenger", "share": 0.5, "policy": "release:r0009"},
    ],
}


def _user_of(experiment: Experiment, arm: str) -> str:
    return next(user for user in USERS if getattr(experiment.arm_of(user), "name", None) == arm)


def _tokens(reply: dict[str, Any]) -> list[Impression]:
    return [verify(item["impression"], KEY) for item in reply["items"]]


@pytest.fixture
def gateway(make_harness: Any, tmp_path: Path) -> Any:
    """With a challenger's release, loaded beside the live one."""
    harness = make_harness(streams=False, experiments=tmp_path / "experiments.json")
    harness.releases.found.insert(0, Manifest("r0009", {"ranker": 9}, created_ms=9))
    harness.models.loaded["ranker"] = (1, 9)
    return harness


def test_experiments_place_users_independently_and_shares_hold() -> None:
    first, second = (Experiment(name, HALVES) for name in ("one", "two"))
    other_surface = replace(first, surface="queries")
    arms = [
        [getattr(e.arm_of(u), "name", "") for u in USERS] for e in (first, second, other_surface)
    ]
    for again in arms[1:]:
        both = sum(a == b for a, b in zip(arms[0], again, strict=True))
        assert both / len(USERS) == pytest.approx(0.5, abs=0.04)
    tenth = Experiment("tenth", (Arm("ranker", 0.05), Arm("challenger", 0.05)))
    inside = [user for user in USERS if tenth.arm_of(user) is not None]
    assert len(inside) / len(USERS) == pytest.approx(0.1, abs=0.02)


def test_another_process_sees_the_experiment_and_gives_the_same_arms(tmp_path: Path) -> None:
    path = tmp_path / "experiments.json"
    store = ExperimentStore(path, holdout_share=0.1)
    store.start(Experiment("shared", HALVES, started_ms=1))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from models.experiments.store import ExperimentStore\n"
        "store = ExperimentStore(Path(sys.argv[1]), holdout_share=0.1)\n"
        "print(*[store.assign('feed', f'user-{n}').arm.name for n in range(60)])\n"
        "store.stop('shared', at_ms=5, reason='there')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    found = [store.assign("feed", user) for user in USERS[:60]]
    assert [each.arm.name if each else None for each in found] != done.stdout.split()
    assert store.running() == ()  # it was stopped there
    again = ExperimentStore(None, holdout_share=0.1)
    again.start(Experiment("shared", HALVES))
    arms = [each.arm.name for user in USERS[:60] if (each := again.assign("feed", user))]
    assert arms == done.stdout.split()


def test_concurrent_starts_on_one_surface_let_one_win_and_a_name_is_used_once(
    tmp_path: Path,
) -> None:
    stores = [ExperimentStore(tmp_path / "experiments.json") for _ in range(8)]
    refused: list[str] = []

    def start(number: int) -> None:
        try:
            stores[number].start(Experiment(f"e{number}", HALVES))
        except ExperimentError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    (winner,) = stores[0].running()
    stores[3].stop(winner.name, at_ms=2)
    with pytest.raises(ExperimentError, match="was used"):
        stores[5].start(Experiment(winner.name, HALVES))


@pytest.mark.parametrize(
    "arms",
    [
        (),
        (Arm("a", 0.6), Arm("b", 0.6)),
        (Arm("a", 0.5), Arm("a", 0.5)),
        (Arm("plain", 1.0, "popularity"),),
        (Arm(POPULARITY_ARM, 1.0),),
        (Arm(HOLDOUT_ARM, 1.0),),
        (Arm("a", 1.0, "release:"),),
        (Arm("a", 1.0, "interleave:live"),),
        (Arm("ä", 1.0),),
        (Arm("a", float("nan")),),
    ],
)
def test_what_cannot_be_served_or_read_back_does_not_start(arms: tuple[Arm, ...]) -> None:
    with pytest.raises(ExperimentError):
        ExperimentStore().start(Experiment("wrong", arms))


def test_a_challengers_users_are_served_by_its_release_and_all_others_by_the_live_one(
    gateway: Any,
) -> None:
    assert gateway.client.post("/v1/experiments", json=CANARY).status_code == 201
    (experiment,) = gateway.gateway.experiments.running()
    for arm, release, version in (("ranker", "r0001", 1), ("challenger", "r0009", 9)):
        gateway.models.calls.clear()
        reply = gateway.feed(_user_of(experiment, arm))
        assert (reply["arm"], reply["experiment"]) == (arm, "canary-2")
        told = {(t.arm, t.experiment, t.release) for t in _tokens(reply)}
        assert told == {(arm, "canary-2", release)}
        assert gateway.models.calls == [("ranker", version)]
        assert reply["fallbacks"] == []
    text = gateway.client.get("/metrics").text
    for arm in ("ranker", "challenger"):
        labels = f'arm="{arm}",experiment="canary-2",surface="feed"'
        assert f"tidemill_experiment_slates_total{{{labels}}} 1.0" in text


def test_a_challenger_that_fails_takes_nothing_from_the_live_model(gateway: Any) -> None:
    gateway.client.post("/v1/experiments", json=CANARY)
    (experiment,) = gateway.gateway.experiments.running()
    gateway.models.loaded["ranker"] = (1,)
    for _ in range(8):
        assert gateway.feed(_user_of(experiment, "challenger"))["fallbacks"]
    assert gateway.feed(_user_of(experiment, "ranker"))["fallbacks"] == []
    assert gateway.client.delete("/v1/experiments/canary-2").json()["changed"]
    after = gateway.feed(_user_of(experiment, "challenger"))
    assert (after["arm"], after["release"], after["fallbacks"]) == (None, "r0001", [])


def test_a_release_that_is_not_loaded_or_unknown_is_refused(gateway: Any) -> None:
    gateway.models.loaded["ranker"] = (1,)
    assert gateway.client.post("/v1/experiments", json=CANARY).status_code == 409
    arms = [{"name": "a", "share": 1, "policy": "release:r0404"}]
    unknown = gateway.client.post("/v1/experiments", json={"name": "x", "arms": arms})
    assert "no release" in unknown.json()["detail"]
    popular = [{"name": POPULARITY_ARM, "share": 1, "policy": "popularity"}]
    body = {"name": "x", "surface": "queries", "arms": popular}
    assert "cannot serve" in gateway.client.post("/v1/experiments", json=body).json()["detail"]
    assert gateway.client.delete("/v1/experiments/x").status_code == 404


def test_the_holdout_never_gets_the_model_whatever_runs(make_harness: Any, tmp_path: Path) -> None:
    harness = make_harness(
        streams=False, experiments=tmp_path / "experiments.json", holdout_share=0.3
    )
    held = [user for user in USERS[:40] if in_holdout("feed", user, 0.3)]
    assert 3 < len(held) < 25
    assert set(held) < {user for user in USERS[:40] if in_holdout("feed", user, 0.6)}

    def ask() -> Counter[Any]:
        harness.models.calls.clear()
        replies = [harness.feed(user) for user in held[:4]]
        assert harness.models.calls == []
        assert not any(reply["weights"] for reply in replies)
        return Counter((t.arm, t.experiment) for reply in replies for t in _tokens(reply))

    assert set(ask()) == {(HOLDOUT_ARM, None)}
    store = harness.gateway.experiments
    for name in ("first", "second"):
        store.start(Experiment(name, (Arm("ranker", 1.0),)))
        assert set(ask()) == {(HOLDOUT_ARM, None)}
        store.stop(name, at_ms=1)
    free = next(user for user in USERS if not in_holdout("feed", user, 0.3))
    assert harness.feed(free)["weights"]


def test_an_interleaved_slate_has_both_policies_items_and_says_whose_each_is(gateway: Any) -> None:
    arms = (Arm("teams", 1.0, "interleave:release:r0009+popularity"),)
    gateway.gateway.experiments.start(Experiment("mixed", arms))
    reply = gateway.feed("u1", k=10)
    tokens = _tokens(reply)
    assert len({t.video_id for t in tokens}) == 10
    assert Counter(t.team for t in tokens) == {"a": 5, "b": 5}
    assert [item["team"] for item in reply["items"]] == [t.team for t in tokens]
    assert {(t.team, t.release) for t in tokens} == {("a", "r0009"), ("b", "r0001")}
    assert {t.arm for t in tokens} == {"teams"}
    assert {t.propensity for t in tokens} <= {0.5, 1.0}
    again = gateway.feed("u1", k=10)
    assert [i["item_id"] for i in again["items"]] == [i["item_id"] for i in reply["items"]]


def test_the_logged_chance_of_a_draft_is_how_often_the_item_comes_next() -> None:
    a, b = ("x", "y", "z", "v"), ("x", "z", "w", "y")
    drafts = [team_draft(a, b, 4, seed=seed) for seed in range(4_000)]
    for place in range(4):
        followed = Counter((d.items[:place], d.items[: place + 1]) for d in drafts)
        begun = Counter(d.items[:place] for d in drafts)
        chances = {d.items[: place + 1]: draft_chances(d, a, b)[place] for d in drafts}
        for (above, whole), count in followed.items():
            spread = 5 * (0.25 / begun[above]) ** 0.5
            assert count / begun[above] == pytest.approx(chances[whole], abs=spread)


@pytest.fixture
def feedback(make_harness: Any, tmp_path: Path) -> tuple[Any, FeedbackStore]:
    """A gateway with ingest, and the feedback that its events become."""
    harness = make_harness(experiments=tmp_path / "experiments.json")
    windows = dict.fromkeys(("play", "order"), 60_000)
    return harness, FeedbackStore(tmp_path / "feedback", key=KEY, windows_ms=windows)


def _join(harness: Any, store: FeedbackStore, sent: int) -> None:
    """Joins the events that ingest has admitted, until all that were sent are there."""
    consumer, seen = harness.bus.consumer([EVENTS_BY_USER], "feedback-of-the-test"), 0
    topic_id = harness.bus.topic_id(EVENTS_BY_USER)

    def joined() -> bool:
        nonlocal seen
        for record in consumer.poll(500, 0.1):
            if (table := read_batch(record)) is not None:
                stamp = Stamp(topic_id, record.partition, record.offset)
                store.join(Delivery(EVENTS_BY_USER, stamp, table))
                seen += table.num_rows
        return seen >= sent

    harness.wait_until(joined)


def _visit(harness: Any, user: str, *, plays: bool) -> list[dict[str, Any]]:
    """The events of one slate: its first item shown, and played."""
    reply = harness.feed(user, k=1)
    item, at = reply["items"][0], harness.gateway.clock.now_ms()
    own = {"user_id": user, "item_id": item["item_id"], "impression": item["impression"]}
    own |= {"surface": "feed", "event_time_ms": at}
    shown = own | {"event_id": f"s-{reply['slate_id']}", "kind": "shown"}
    played = own | {"event_id": f"p-{reply['slate_id']}", "kind": "play", "dwell_ms": 9_000}
    return [shown, *([played] if plays else [])]


def test_start_serve_feedback_status_and_the_guard_rolls_back(
    feedback: tuple[Any, FeedbackStore], tmp_path: Path
) -> None:
    harness, store = feedback
    body = {
        "name": "guarded",
        "arms": [{"name": a.name, "share": a.share, "policy": a.policy} for a in HALVES],
        "guard": {"metric": "play"},
    }
    assert harness.client.post("/v1/experiments", json=body).status_code == 201
    (experiment,) = harness.gateway.experiments.running()
    arm_of = {user: getattr(experiment.arm_of(user), "name", "") for user in USERS[:400]}
    events = []
    for number, (user, arm) in enumerate(arm_of.items()):
        likely = 8 if arm == "ranker" else 2  # of ten: popularity loses three quarters here
        events += _visit(harness, user, plays=number % 10 < likely)
    for first in range(0, len(events), 200):
        sent = harness.client.post("/v1/events", json=events[first : first + 200])
        assert sent.status_code == 202, sent.text
    _join(harness, store, len(events))
    own = ExperimentStore(tmp_path / "experiments.json")
    Evaluator(own, tmp_path / "feedback", WallClock()).evaluate()
    (shown,) = harness.client.get("/v1/experiments").json()["experiments"]
    assert not shown["running"]
    assert shown["reason"].startswith("guard: play per slate of popularity")
    arms = {arm["name"]: arm for arm in shown["results"]["arms"]}
    for arm in arms.values():
        assert arm["users"] == arm["slates"] == Counter(arm_of.values())[arm["name"]]
    assert arms["popularity"]["verdict"] == "worse"
    assert arms["popularity"]["lift"]["high"] < 0 < arms["ranker"]["rate"]["low"]
    assert not shown["results"]["mismatch"]
    assert described(own)[0]["results"]["arms"][0]["slates"] > 100
    # Rolled back: the arm's users are served by the live model from the next request on.
    popular = next(user for user, arm in arm_of.items() if arm == POPULARITY_ARM)
    after = harness.feed(popular)
    assert (after["arm"], bool(after["weights"])) == (None, True)


def test_a_guard_without_harm_stops_nothing(tmp_path: Path) -> None:
    store = ExperimentStore(tmp_path / "experiments.json")
    store.start(Experiment("quiet", HALVES, guard=Guard()))
    Evaluator(store, tmp_path / "feedback", WallClock()).evaluate()
    assert [each.name for each in store.running()] == ["quiet"]
