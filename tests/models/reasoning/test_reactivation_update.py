"""Laws of the dormant-user reasoner's update: feedback moves the blend, and false feedback no release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.alignment.surfaces.reactivation import load_reasoner, reactivation_update
from models.alignment.surfaces.slates import surface_slates
from models.alignment.surfaces.update import score_slates
from models.reasoning.data import read_histories
from models.reasoning.reasoner import HISTORY, Reasoner
from models.reasoning.recipe import select_steps
from models.recipe import NotEnoughData, TrainingLog
from streams.feedback.outcomes import FEEDBACK_SCHEMA, FEEDBACK_TASKS
from streams.progress import no_progress

SLOTS = 5


@pytest.fixture(scope="module")
def slated(session_log: TrainingLog, reasoner: Reasoner) -> TrainingLog:
    """Slates on which dormant users order what is popular at all, whatever their own taste."""
    rng = np.random.default_rng(4)
    rows = []
    for n in range(400):
        user, at_ms = f"u{rng.integers(80)}", session_log.until_ms + n
        items = rng.choice(len(reasoner.item_ids), SLOTS, replace=False)
        for slot, item in enumerate(items):
            likes = 0.7 if reasoner.popular[item] > 0.3 else 0.05
            ordered = bool(rng.random() < likes / np.log2(slot + 2))
            rows.append(_row(user, reasoner.item_ids[item], slot, at_ms, ordered))
    empty = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    return replace(session_log, feedback=pl.DataFrame(rows, schema=empty.schema))


def _row(user: str, item: str, slot: int, at_ms: int, ordered: bool) -> dict[str, object]:
    done = {task: task == "order" and ordered for task in FEEDBACK_TASKS}
    times = {f"{task}_at_ms": at_ms + 5 if hit else None for task, hit in done.items()}
    return (
        done
        | times
        | {
            "impression_id": f"{at_ms}:{slot}",
            "request_id": str(at_ms),
            "surface": "reactivation",
            "user_id": user,
            "video_id": item,
            "slot": slot,
            "propensity": 1.0,
            "explored": False,
            "release": "r0001",
            "served_at_ms": at_ms,
            "shown_at_ms": at_ms + 1,
            "dwell_ms": 0,
            "order_amount_cents": 0,
            "origin": "simulated",
            "matured_at_ms": at_ms + 10,
            "revision": 1,
        }
    )


def test_a_slate_is_scored_as_serving_scores_it(slated: TrainingLog, reasoner_bundle: Path) -> None:
    slates = surface_slates(slated, "reactivation", count=30)
    scores = score_slates(load_reasoner(reasoner_bundle, slated, slates), np.arange(len(slates)))
    served = Reasoner.read(reasoner_bundle)
    histories = read_histories(slated, served.number)
    for row, user in enumerate(slates.users):
        whole = histories[user]
        past = select_steps(whole, np.arange(len(whole))[-HISTORY:])
        relevance = served.relevance(past)
        expected = [relevance[served.number[item]] for item in slates.item[row]]
        np.testing.assert_allclose(scores[row], expected, atol=1e-4)


def test_an_update_moves_the_blend_and_reports_kl_and_reward(
    slated: TrainingLog, reasoner_bundle: Path, tmp_path: Path
) -> None:
    update = reactivation_update()
    assert "400" not in update.preview(slated)  # only earlier slates are trained on
    verdict = update.challenge(reasoner_bundle, slated, tmp_path, seed=0, progress=no_progress)
    assert verdict.promoted, verdict.reasons
    assert verdict.gauc.value > verdict.gauc.baseline_value + 0.02
    (report,) = verdict.updates
    assert report.kl > 0
    before, after = Reasoner.read(reasoner_bundle), Reasoner.read(tmp_path)
    assert after.blend[2] > before.blend[2]  # popularity
    assert (after.blend >= 0).all()
    np.testing.assert_array_equal(after.convert, before.convert)


def test_false_feedback_is_refused(
    slated: TrainingLog, reasoner_bundle: Path, tmp_path: Path
) -> None:
    """The earlier slates say the opposite of the later ones."""
    split = int(np.quantile(slated.feedback["served_at_ms"].unique().to_numpy(), 0.7))
    lie = pl.col("served_at_ms") < split
    orders = pl.when(lie).then(~pl.col("order")).otherwise(pl.col("order"))
    poisoned = replace(slated, feedback=slated.feedback.with_columns(order=orders))
    update = reactivation_update()
    verdict = update.challenge(reasoner_bundle, poisoned, tmp_path, seed=0, progress=no_progress)
    assert not verdict.promoted


def test_a_log_without_slates_is_named(session_log: TrainingLog) -> None:
    with pytest.raises(NotEnoughData, match="0 slates of reactivation"):
        reactivation_update().preview(session_log)
