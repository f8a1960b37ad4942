"""The figures of the feed's experiment, as its evaluation last wrote them.

Knows one JSON file. Does not know how arms are assigned (`serving.pipeline.arms`) nor evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson


def read_figures(path: Path | None) -> dict[str, Any] | None:
    """The file's object; None where there is none yet or it cannot be read."""
    if path is None:
        return None
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None
