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
from features.store import EntityName, Status
from streams.contract.bounds import is_time_ms, time_fix

Inputs = Mapping[str, list[Any]]
Finalizer = Callable[[dict[str, Any]], dict[str, Any]]


def finalize_features(entity: EntityName, inputs: Inputs) -> dict[str, list[Any]]:
    """Every declared feature of the entity from `row` (bytes) and `now_ms`, as plain lists, and
    the row's status (`status_feature`): "present", "absent" or "expired".

    At `apply` Feast calls it with bytes that are no row; they read as absent.

    Raises:
        ValueError: `now_ms` is missing or is no time in milliseconds.
    """
    definition = DEFINITIONS[entity]
    stated = inputs[ROW_FEATURE]
    blobs = [blob if readable(blob) else None for blob in stated]
    times = zip(stated, blobs, inputs["now_ms"], strict=True)
    # Feast's own sample values come with bytes that are no row.
    now_ms = [0 if raw and blob is None else _checked_now(now) for raw, blob, now in times]
    frame = finalize_rows(definition, [""] * len(blobs), blobs, np.array(now_ms, np.int64))
    # A null stays NaN here: Feast reads that as null, and cannot infer a type from None.
    features = {name: column.tolist() for name, column in frame.columns.items()}
    return features | {status_feature(entity): [_STATUS[code] for code in frame.status.tolist()]}


def status_feature(entity: EntityName) -> str:
    """The String feature beside the declared ones. Features of an absent row are zeros and empty
    lists; those of an expired row are its last values, and cold start applies."""
    return f"{entity}_row_status"


_STATUS = {status.value: status.name.lower() for status in Status}


def _checked_now(value: object) -> int:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, int | np.integer) and is_time_ms(int(whole)):
        return int(whole)
    raise ValueError(
        f"now_ms is {value!r}: state the reader's time in milliseconds since 1970, as in "
        f"int(time.time() * 1000) ({time_fix(value)})"
    )


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
    if entity in FINALIZERS:
        finalizer = cast(FunctionType, FINALIZERS[entity])
        return finalizer, inspect.getsource(finalizer)
    text = _OWN_FINALIZER.format(entity=entity)  # a checked name: letters, digits, underscores
    made: dict[str, Any] = {"__name__": "__main__"}  # of no module, so it is pickled whole
    exec(text, made)
    return made[f"finalize_{entity}"], text


_OWN_FINALIZER = """\
def finalize_{entity}(inputs):
    from features.feast.on_demand import finalize_features

    return finalize_features("{entity}", inputs)
"""
