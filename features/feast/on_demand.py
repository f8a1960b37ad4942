"""The functions that Feast calls to finish typed features from stored rows.

Knows the dictionaries that Feast passes to a `mode="python"` on-demand view. Does not
import Feast. Feast stores a function by dill, so each finisher only names this module
and an entity; the work is done by the code that is installed, not by a pickled copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, cast

import numpy as np

from features.definitions import DEFINITIONS
from features.kernels.layout import readable
from features.online.feast_keys import ROW_FEATURE
from features.rows.finalize import finish_blobs
from features.store import EntityName

Inputs = Mapping[str, list[Any]]
Finisher = Callable[[dict[str, Any]], dict[str, Any]]


def finished(entity: EntityName, inputs: Inputs) -> dict[str, list[Any]]:
    """Every declared feature of the entity from `row` and `now_ms`, as plain lists.

    At `apply` Feast calls it with bytes that are no row: those read as absent.
    """
    definition = DEFINITIONS[entity]
    blobs = [blob if readable(blob) else None for blob in inputs[ROW_FEATURE]]
    now_ms = [int(value or 0) for value in inputs["now_ms"]]
    now = np.array(now_ms, np.int64)
    frame = finish_blobs(definition, [""] * len(blobs), blobs, now)
    return {name: column.tolist() for name, column in frame.columns.items()}


def finish_user(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finished

    return finished("user", inputs)


def finish_video(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finished

    return finished("video", inputs)


def finish_author(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finished

    return finished("author", inputs)


def finish_query(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finished

    return finished("query", inputs)


FINISHERS: Mapping[EntityName, Finisher] = {
    "user": finish_user,
    "video": finish_video,
    "author": finish_author,
    "query": finish_query,
}


def feast_function(entity: EntityName) -> tuple[FunctionType, str]:
    """The entity's finisher and its text, as Feast's registry keeps them."""
    finisher = cast(FunctionType, FINISHERS[entity])
    return finisher, inspect.getsource(finisher)
