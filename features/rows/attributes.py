"""The attributes that an owner states of users, read from users' rows.

Knows the column that holds them as JSON, and the declarations in force. Does not know how they came
into the row (`features.definitions.ATTRIBUTES`): online and point in time they read the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from features.definitions import ATTRIBUTES
from features.store import FeatureFrame
from streams.contract.attributes import AttributeValue, read_attributes_json
from streams.contract.declaration import contract

UserAttributes = Mapping[str, AttributeValue]


def user_attributes(frame: FeatureFrame | None, row: int = 0) -> UserAttributes:
    """One user's attributes by name: numbers as floats, lists as tuples.

    Empty where none are declared or stated, and for rows of other entities. A stored value that
    does not fit a later declaration is left out; undeclared attributes are kept.
    """
    declared = contract()
    if frame is None or frame.entity != "user" or not declared.signals.user_attributes:
        return {}
    column = frame.columns.get(ATTRIBUTES.column)  # absent of a frame from before the declaration
    stated = [] if column is None else column[row]
    return declared.users.fitting(read_attributes_json(stated[0])) if stated else {}


def attribute_columns(frame: FeatureFrame) -> dict[str, np.ndarray]:
    """Declared attribute -> object [N], None where it is absent: what a model trains on."""
    declarations = contract().users
    rows = [declarations.conforming(user_attributes(frame, row)) for row in range(len(frame))]
    columns = {name: np.empty(len(rows), object) for name in declarations.declared}
    for name, column in columns.items():
        for place, row in enumerate(rows):  # one by one: numpy would unpack a column of tuples
            column[place] = row[name]
    return columns
