"""From a declaration to features, a feed, feedback and an update, with no Python but the owner's.

Two small planted worlds whose signals are declared (`benchmarks.declared`): a shop and a music
service. `python -m benchmarks declared` is the full form, with several seeds and null controls.
"""

from __future__ import annotations

import pytest

from benchmarks.declared import DECLARED_TASK, QUICK, SERVED
from benchmarks.declared.measurement import OWNERS, run_world
from models.ranking.tasks import SHIPPED_TASKS
from models.training.evaluation import paired_bootstrap
from streams.contract.declaration import contract

OWN_COLUMNS = {
    "shop": {"view_count_all", "returned_cents_sum_all", "viewed_item"},
    "music": {"rating_count_all", "rated_item"},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", sorted(DECLARED_TASK))
def test_a_world_that_exists_by_declaration_is_served_above_popularity(kind: str) -> None:
    assert sorted(path.name for path in (OWNERS / kind).iterdir() if path.is_file()) == [
        "features.py",
        "tidemill.toml",
    ]
    judged = run_world(kind, QUICK, 0)
    every = (*SHIPPED_TASKS.names, DECLARED_TASK[kind])
    assert judged.tasks == (every, every), "replies name the tasks, before and after the update"
    assert judged.fallbacks == []
    assert OWN_COLUMNS[kind] <= judged.row.keys()
    assert judged.row[f"{DECLARED_TASK[kind]}_count_all"] > 0
    assert judged.outcome.challenger > judged.outcome.incumbent
    mean, low, _ = paired_bootstrap(judged.gain(SERVED))
    assert low > 0, (mean, low)
    assert contract().signals.declared == (), "the declaration is undone"
