"""Laws of the dormant-user reasoner: paths, roles, parity, bad input, and its baselines."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from models.layers.transitions import transitions
from models.reasoning import roles
from models.reasoning.config import ReactivationConfig
from models.reasoning.data import read_histories
from models.reasoning.inputs import ROLES, SIGNATURE, canary_request
from models.reasoning.recipe import ReactivationRecipe, select_steps
from models.reasoning.runtime import ReactivationRuntime
from models.reasoning.sessions import KINDS, fold_steps, observe_steps
from models.reasoning.train import fit_reasoner
from models.recipe import NotEnoughData, TrainingLog
from models.registry import REGISTRY
from models.release.canary import read_canary, wrong_answer
from models.signature import BadInput, byte_list, text_list
from streams.feedback.outcomes import FEEDBACK_SCHEMA

NOW_MS = 1_800_000_000_000


def request(ids=("v1", "v5", "v9"), kinds=("play", "order", "play"), **changed):
    times = [NOW_MS - 86_400_000 * (n + 20) for n in range(len(ids))] or [0]
    tensors = {
        "history": byte_list(ids),
        "history_kind": byte_list(kinds),
        "history_time_ms": np.array(times, dtype=np.int64),
        "now_ms": np.array([NOW_MS], dtype=np.int64),
        "unavailable": byte_list([]),
        "k": np.array([6], dtype=np.int64),
    }
    return tensors | changed


def check_progress(share, what):
    assert 0.0 <= share <= 1.0
    assert what


def test_a_path_ends_in_its_goal_and_repeats_nothing(reasoner_bundle):
    found = ReactivationRuntime(reasoner_bundle).infer(request())
    path = text_list(found["video_id"])
    assert len(path) == len(set(path)) <= 6
    assert path[-1:] == text_list(found["goal"])
    assert not {"v1", "v5", "v9"} & set(path)
    assert set(text_list(found["role"])) <= set(ROLES)
    assert ((found["p_convert"] > 0) & (found["p_convert"] < 1)).all()


def test_a_silent_users_path_opens_with_a_trigger_and_ends_in_a_converter(reasoner_bundle):
    role = text_list(ReactivationRuntime(reasoner_bundle).infer(request())["role"])
    assert role[0] == "trigger"
    assert role[-1] == "converter"


def histories(reasoner, session_log):
    """200 users' histories: a user of the log up to each of their last sessions."""
    found = [
        select_steps(whole, np.flatnonzero(whole.session < whole.session[-1] - back))
        for whole in read_histories(session_log, reasoner.number).values()
        for back in range(3)
    ]
    return found[:200]


def test_every_path_of_200_users_is_whole_and_ends_at_its_goal(
    reasoner, reasoner_bundle, session_log
):
    runtime, sequences = ReactivationRuntime(reasoner_bundle), set()
    users = histories(reasoner, session_log)
    assert len(users) == 200
    for k in (1, 2, 6):
        for past in users:
            ids = [reasoner.item_ids[item] for item in past.item[::-1]]
            kinds = [KINDS[kind] for kind in past.kind[::-1]]
            now_ms = int(past.time_ms[-1]) + 30 * 86_400_000
            found = runtime.infer(
                request(
                    ids,
                    kinds,
                    history_time_ms=past.time_ms[::-1].copy(),
                    now_ms=np.array([now_ms]),
                    k=np.array([k]),
                )
            )
            path, role = text_list(found["video_id"]), text_list(found["role"])
            assert 1 <= len(path) == len(set(path)) == len(role) <= k
            assert path[-1:] == text_list(found["goal"])
            assert role[-1] == "converter"
            assert not set(path) & set(ids)
            sequences.add(tuple(role))
    assert len(sequences) >= 5, "roles vary between users"
    assert {role for sequence in sequences for role in sequence} >= {"trigger", "comparison"}


def test_a_path_is_planned_around_an_unavailable_step_or_goal(reasoner_bundle):
    runtime = ReactivationRuntime(reasoner_bundle)
    first = runtime.infer(request())
    for gone in {*text_list(first["video_id"])}:
        found = runtime.infer(request(unavailable=byte_list([gone])))
        path = text_list(found["video_id"])
        assert gone not in path
        assert path[-1:] == text_list(found["goal"])
        assert text_list(found["role"])[-1] == "converter"


def test_goals_not_taken_are_returned_beside_the_one_taken(reasoner_bundle):
    found = ReactivationRuntime(reasoner_bundle).infer(request())
    others = text_list(found["counterfactual_goal"])
    assert len(others) == len(set(others)) == len(found["counterfactual_p"]) == 4
    assert text_list(found["goal"])[0] not in others


def test_items_taken_down_are_not_recommended(reasoner_bundle):
    runtime = ReactivationRuntime(reasoner_bundle)
    first = text_list(runtime.infer(request())["video_id"])
    found = runtime.infer(request(k=np.array([100]), unavailable=byte_list(first)))
    assert not ({*first, "v59"} & set(text_list(found["video_id"])))


def test_the_runtime_equals_the_fitted_reasoner(reasoner_bundle, reasoner):
    runtime = ReactivationRuntime(reasoner_bundle)
    for n in range(10):
        ids = [f"v{n}", f"v{n + 4}", f"v{n + 8}"]
        tensors = request(ids)
        past = reasoner.history(ids, ["play", "order", "play"], tensors["history_time_ms"].tolist())
        plan = reasoner.plan(past, 6, NOW_MS)
        served = runtime.infer(tensors)
        assert text_list(served["video_id"]) == [reasoner.item_ids[i] for i in plan.items]
        assert text_list(served["role"]) == plan.roles
        assert np.allclose(served["p_convert"], plan.p_convert, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"ids": (), "kinds": ()},
        {"ids": ("no", "known", "item")},
        {"kinds": ("play", "unheard of", "")},
        {"now_ms": np.array([0])},
        {"k": np.array([1])},
        {"k": np.array([10**12])},
        {"history_time_ms": np.array([-(2**40), 0, 2**40])},
    ],
)
def test_odd_requests_are_answered(reasoner_bundle, changed):
    found = ReactivationRuntime(reasoner_bundle).infer(request(**changed))
    assert len(found["video_id"]) == len(found["role"]) == len(found["p_convert"]) >= 1
    assert np.isfinite(found["p_convert"]).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"k": np.array([0])}, "'k'"),
        ({"k": np.array([-5])}, "'k'"),
        ({"history_time_ms": np.array([1])}, "length"),
        ({"unavailable": byte_list([f"v{n}" for n in range(60)])}, "unavailable"),
    ],
)
def test_an_invalid_request_is_refused_with_its_reason(reasoner_bundle, changed, said):
    with pytest.raises(BadInput, match=said):
        ReactivationRuntime(reasoner_bundle).infer(request(**changed))


@pytest.mark.parametrize("name", [spec.name for spec in SIGNATURE.inputs])
def test_a_missing_tensor_is_named(reasoner_bundle, name):
    tensors = request()
    del tensors[name]
    with pytest.raises(BadInput, match=name):
        ReactivationRuntime(reasoner_bundle).infer(tensors)


def test_too_few_engagements_say_what_is_missing(session_log):
    with pytest.raises(NotEnoughData, match="are needed"):
        fit_reasoner(
            replace(session_log, events=session_log.events.head(9)),
            ReactivationConfig(),
            check_progress,
        )


def test_the_strongest_action_on_an_item_is_the_step():
    past = fold_steps([7, 7, 8, 7], [0, 2, 0, 1], [0, 10, 20, 30 + 7_200_000])
    assert past.item.tolist() == [7, 8, 7]
    assert past.kind.tolist() == [2, 0, 1]
    assert past.session.tolist() == [0, 0, 1]


def test_transitions_look_forward_more_than_back():
    table = transitions([np.array([0, 1, 2])] * 3, 4)
    assert table[0, 1] > table[1, 0] > 0
    assert table[3].sum() == table[0, 0] == 0


def planted(model, rng, sessions=1500, length=8):
    """Sessions drawn from a role model, with the roles that made them."""
    drawn, made = [], []
    for _ in range(sessions):
        role = int(rng.choice(5, p=model.start))
        seen, path = [], []
        for _ in range(length):
            path.append(role)
            seen.append([int(rng.choice(len(t[role]), p=t[role])) for t in model.emit])
            role = int(rng.choice(5, p=model.move[role]))
        drawn.append(np.array(seen))
        made.append(path)
    return drawn, made


def test_em_never_lowers_the_likelihood_and_improves_on_its_start():
    drawn, _ = planted(roles.prior_role_model(), np.random.default_rng(1), sessions=300)
    shaken = [session[:, [0, 1, 2, 3]] for session in drawn]
    _, history = roles.fit_roles(shaken, rounds=10, strength=1e-6)
    assert (np.diff(history) > -1e-6 * abs(history[0])).all()
    assert history[-1] > history[0]


def test_planted_roles_are_found_better_than_by_chance():
    drawn, made = planted(roles.prior_role_model(), np.random.default_rng(2))
    model, _ = roles.fit_roles(drawn)
    found = np.array([[ROLES.index(r) for r in model.decode(s)] for s in drawn])
    right = (found == np.array(made)).mean()
    commonest = np.bincount(np.array(made).ravel()).max() / np.array(made).size
    assert right > commonest + 0.2


def test_observations_stay_within_their_channels(reasoner):
    past = fold_steps([0, 1, 2, 3], [0, 6, 2, 1], [0, 60_000, 10**9, 10**10])
    seen = observe_steps(past, reasoner.genres)
    assert (seen >= 0).all()
    assert (seen.max(axis=0) < [5, 7, 6, 4]).all()


def test_the_runtime_imports_no_torch_arrow_polars_or_feast():
    code = (
        "import sys, models.reasoning.runtime\n"
        "bad = {'torch', 'pyarrow', 'polars', 'feast'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def empty_feedback():
    return pl.from_arrow(FEEDBACK_SCHEMA.empty_table())


@pytest.mark.slow
def test_it_beats_the_last_session_again_on_a_time_split():
    from deploy.simulation.history import history

    world = history(0)
    until_ms = int(world.frame["event_time_ms"].max()) + 1
    log = TrainingLog(world.frame, world.items_frame, empty_feedback(), until_ms)
    found = ReactivationRecipe().evaluate_all(log, seed=0, progress=check_progress)
    assert found["the last session again"].beats_baseline, found
    # The stronger baselines are beaten on average.
    assert found["popularity"].difference[0] > 0
    assert found["F1 transitions"].difference[0] > 0


def test_a_dead_or_frozen_reasoner_is_detected_reloaded_and_answers_rightly(
    assert_heals, reasoner, reasoner_bundle
):
    assert_heals("reactivation", reasoner_bundle, canary_request(reasoner.item_ids))


def test_training_stores_a_canary_with_its_answer(session_log, tmp_path):
    ReactivationRecipe().train(session_log, tmp_path, seed=0, progress=check_progress)
    canary = read_canary(tmp_path, REGISTRY["reactivation"].runtime)
    answer = ReactivationRuntime(tmp_path).infer(canary.request)
    assert wrong_answer("reactivation", canary, answer) == ""
    assert wrong_answer("reactivation", canary, answer | {"goal": byte_list(["another"])})
