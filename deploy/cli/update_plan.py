"""What `tidemill models update NAME --dry-run` says. Reads only.

Knows words and times for people. What an update would do is `models.training.update`'s, when it is
due `models.training.schedule`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deploy.settings import Settings
from models.recipe import NotEnoughData, TrainingLog
from models.release.store import ReleaseStore
from models.updates.report import UpdateReport, reports_of

if TYPE_CHECKING:
    from models.training.update import UpdatePlan
    from models.training.update_state import UpdateState


def dry_run_lines(
    model: str, settings: Settings, store: ReleaseStore, log: TrainingLog, now_ms: int
) -> Iterator[str]:
    """One line for each of: the decision, the interval, the last attempt, the gate.

    Raises `ReleaseError` when no bundle is live that can be updated, `NotEnoughData` for a model
    without updates.
    """
    from models.training.update import challenge_of, plan_update
    from models.training.update_state import lease_holder, read_state

    challenge = challenge_of(model)
    state, plan = read_state(store, model), plan_update(model, log, store)
    yield f"{model}: {_due(model, settings, store, plan, state, now_ms)}"
    if holder := lease_holder(store):
        yield f"an update runs now ({holder}); another one would have to wait for it"
    elif state.unfinished is not None:
        yield _interrupted(model, state)
    yield (
        f"interval: feedback that matured after {_time(plan.since_ms)} and up to "
        f"{_time(plan.until_ms)}: {plan.impressions} impressions"
    )
    yield f"last attempt: {_last(state)}"
    for report in _last_reports(state, store):
        yield f"last attempt: {report.in_words()}"
    live = store.current()
    name = live.release_id if live is not None else "none"
    yield f"incumbent: {model} version {plan.incumbent.version} of release {name}"
    yield _gate(challenge, plan.log)
    yield "nothing was changed"


def _due(
    model: str,
    settings: Settings,
    store: ReleaseStore,
    plan: UpdatePlan,
    state: UpdateState,
    now_ms: int,
) -> str:
    from models.training.schedule import due

    known = settings.updates.get(model)
    if known is None:
        return (
            f"not scheduled ([updates.{model}] in settings.toml does that); without --dry-run it "
            "would start now"
        )
    matured = plan.log.feedback["matured_at_ms"]
    found = due(
        known.schedule(),
        state,
        now_ms=now_ms,
        live_since_ms=store.first_live_ms(model),
        matured=int((matured > state.seen_until_ms).sum()),
    )
    words = "due now" if found.now else "not due"
    by = f"; by time at {_time(found.at_ms)}" if found.at_ms is not None else ""
    return f"{words}: {found.why} (scheduled {known.in_words()}{by})"


def _interrupted(model: str, state: UpdateState) -> str:
    left = state.unfinished
    assert left is not None
    if left.phase == "training":
        return "an update was interrupted before its verdict: it would be undone first"
    word = "made live" if left.promoted else "recorded as refused"
    return (
        f"an update was interrupted after its verdict: {model} version {left.version} would be "
        f"{word}, and nothing else done"
    )


def _last(state: UpdateState) -> str:
    last = state.last
    if last is None:
        return "none"
    kept = "; its feedback is kept" if last.ending in ("refused", "failed", "superseded") else ""
    reasons = "; ".join(last.reasons) or "no verdict yet"
    return f"{last.ending or last.phase} at {_time(last.started_ms)}: {reasons}{kept}"


def _last_reports(state: UpdateState, store: ReleaseStore) -> list[UpdateReport]:
    """KL and reward of the last attempt's training, from its release's record."""
    last = state.last.release if state.last is not None else ""
    return [r for m in store.manifests() if m.release_id == last for r in reports_of(m.gate)]


def _gate(challenge: Any, log: TrainingLog) -> str:
    preview = getattr(challenge, "preview", None)
    if preview is None:
        return "gate: as this model's update defines it"
    try:
        return f"gate: {preview(log)}"
    except NotEnoughData as error:
        return f"gate: it would not be reached: {error}"


def _time(at_ms: int) -> str:
    if not at_ms:
        return "the beginning"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
