"""The functions that Feast calls to finalize typed features from stored rows.

Knows the dictionaries that Feast passes to a `mode="python"` on-demand view. Does not import
Feast. Feast's registry stores a pickled copy of a function, so each one only imports this
module: the installed code does the work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, cast

import numpy as np

from features.definitions import DEFINITIONS
from features.online.feast_keys import ROW_FEATURE
from features.rows.decode import readable
from features.rows.finalize import finalize_rows
from features.store import EntityName

Inputs = Mapping[str, list[Any]]
Finalizer = Callable[[dict[str, Any]], dict[str, Any]]


def finalize_features(entity: EntityName, inputs: Inputs) -> dict[str, list[Any]]:
    """Every declared feature of the entity from `row` (bytes) and `now_ms`, as plain lists.

    At `apply` Feast calls it with bytes that are no row; they read as absent.
    """
    definition = DEFINITIONS[entity]
    blobs = [blob if readable(blob) else None for blob in inputs[ROW_FEATURE]]
    now_ms = [int(value or 0) for value in inputs["now_ms"]]
    now = np.array(now_ms, np.int64)
    frame = finalize_rows(definition, [""] * len(blobs), blobs, now)
    return {name: column.tolist() for name, column in frame.columns.items()}


def finalize_user(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finalize_features

    return finalize_features("user", inputs)


def finalize_item(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finalize_features

    return finalize_features("video", inputs)


def finalize_author(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finalize_features

    return finalize_features("author", inputs)


def finalize_query(inputs: dict[str, Any]) -> dict[str, Any]:
    from features.feast.on_demand import finalize_features

    return finalize_features("query", inputs)


FINALIZERS: Mapping[EntityName, Finalizer] = {
    "user": finalize_user,
    "video": finalize_item,
    "author": finalize_author,
    "query": finalize_query,
}


def feast_function(entity: EntityName) -> tuple[FunctionType, str]:
    """The entity's function and its source text, as Feast's registry stores them."""
    finalizer = cast(FunctionType, FINALIZERS[entity])
    return finalizer, inspect.getsource(finalizer)
