"""How long-running work reports its progress.

Knows the callback's form. Does not know what shows it (`deploy.console`).
"""

from collections.abc import Callable

ProgressCallback = Callable[[float, str], None]
"""Called with the share that is done, in [0, 1], and the present step."""


def no_progress(_share: float, _step: str) -> None:
    """A `ProgressCallback` for callers that show none."""
