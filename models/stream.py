"""Answers that a model gives in parts, each as soon as it is decided.

Knows parts of an answer, and the name of a model's streaming form on Triton. Does not know servers.
Numpy and the standard library only: Triton's backend imports it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

Tensors = Mapping[str, np.ndarray]
CANCEL = "cancel"  # BYTES tensor [1] to a streaming form: the id of the request to end
DEADLINE_MS = "deadline_ms"  # parameter of a request to a streaming form, from its arrival
_FORM = ".stream"


@runtime_checkable
class StreamRuntime(Protocol):
    """A `models.recipe.Runtime` that can give an answer in parts.

    Every output has one row for each result, so parts can be joined.
    """

    def infer_stream(self, inputs: Tensors) -> Generator[dict[str, np.ndarray], None, None]:
        """At least one part. Joined in order, the parts are what `infer` answers.

        A part holds every output, and is given no later than the next one is worked on. What was
        given is final. Closing the iterator ends the work. Raises `models.signature.BadInput`.
        """


class OneRuntime(Protocol):
    """The part of `models.recipe.Runtime` that this module needs."""

    def infer(self, inputs: Tensors, /) -> dict[str, np.ndarray]: ...


def parts_of(runtime: OneRuntime, inputs: Tensors) -> Generator[dict[str, np.ndarray], None, None]:
    """The parts of an answer; one part from a runtime that does not stream."""
    if isinstance(runtime, StreamRuntime):
        yield from runtime.infer_stream(inputs)
    else:
        yield runtime.infer(inputs)


def joined(parts: Iterable[Tensors]) -> dict[str, np.ndarray]:
    """The whole answer of at least one part."""
    each = list(parts)
    return {name: np.concatenate([part[name] for part in each]) for name in each[0]}


def stream_form(model: str) -> str:
    """The name under which Triton serves the model's answers in parts.

    A model that answers in parts refuses ordinary calls there, so it has two names.
    """
    return model + _FORM


def base_of(name: str) -> str:
    """The model's own name, given that or its streaming form's."""
    return name.removesuffix(_FORM)


def is_stream_form(name: str) -> bool:
    return name.endswith(_FORM)
