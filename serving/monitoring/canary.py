"""One small, honest request per model: what the watchdog asks to see whether it answers.

Knows the models' inputs. Does not know what a right answer is.
"""

from __future__ import annotations

import numpy as np

from models.generation import inputs as generation
from models.ranking.ple import inputs as ranking
from models.reasoning import inputs as reasoning
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import absent

_NOBODY = "canary"


def canaries(catalogue: LiveCatalogue, now_ms: int) -> dict[str, dict[str, np.ndarray]]:
    """A stranger asks about the catalogue's first video; {} while the catalogue is empty."""
    ids = catalogue.index().ids[:1]
    item = catalogue.get(ids[0]) if ids else None
    if item is None:
        return {}
    user, video = absent("user", [_NOBODY]), absent("video", [item.video_id])
    author = absent("author", [item.author_id or ""])
    return {
        "ranker": ranking.assemble(user, video, author, [item], {}, now_ms),
        "queries": generation.assemble(user, video, item, 1, now_ms),
        "reactivation": reasoning.assemble(user, 1, now_ms),
    }
