"""What the stack's processes share to use less memory and fewer calls.

Knows numbers and their reasons. Does not know settings: these are measured, not chosen by users.
"""

from __future__ import annotations

import sys

COMBINED_BYTES = 10_000_000  # of queued messages that are handled as one batch
BEHIND_S = 2.0  # the longest that a lagging partition waits to combine more messages
CACHED_ROWS = 100_000  # of an entity in a folding process, about 2 kB each


class _NoPandas:
    """A finder that finds nothing, and says so before others are asked for pandas."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


def keep_pandas_out_of_pyarrow() -> None:
    """pyarrow imports pandas, where it is installed, at the first array that is made of Python
    values: 25 MB in each process. It tries once, so it is made to try while there is none."""
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
