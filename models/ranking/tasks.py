"""The ranker's tasks: the five shipped ones, and those of declared signals.

Knows names, numbers and what a role gives a task. Does not know networks or logs. A trained bundle
holds its own list: a release keeps its tasks when a declaration comes or goes. Signals have numbers
for good (`streams.contract.signals`), so an answer states its tasks by number. Imported in Triton's
stub: numpy only, and the contract only where a function needs it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

TASKS_FILE = "tasks.json"
MAX_TASKS = 32  # as many weights as an impression's token carries
PLAY = "play"
# Gain in the listwise loss and fusion weight before any feedback. An engagement counts as a like, a
# conversion as an order. A signal that opens items, in a log without plays, counts as a play.
ENGAGEMENT, CONVERSION, OPENING = (2.0, 0.15), (4.0, 0.05), (1.0, 0.6)


@dataclass(frozen=True)
class Task:
    """One action of which the ranker predicts the probability.

    gain: of an acted-on candidate in the listwise loss. start: the fusion weight before any
    feedback, before all are scaled to the simplex. valued: its events state a value, and only one
    that is at least the user's usual value counts as done.
    """

    name: str
    number: int
    gain: float
    start: float
    valued: bool = False


@dataclass(frozen=True)
class RankerTasks:
    """The T tasks of one ranker, in the order of its outputs.

    base: the task that every other action follows: the play, or what opens items where nothing is
    played. Later actions are learned given it.
    """

    tasks: tuple[Task, ...]
    base: int = 0

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @cached_property
    def numbers(self) -> np.ndarray:
        """int64 [T]"""
        return np.array([task.number for task in self.tasks], np.int64)

    @property
    def gains(self) -> tuple[float, ...]:
        return tuple(task.gain for task in self.tasks)

    @property
    def start_weights(self) -> tuple[float, ...]:
        return tuple(task.start for task in self.tasks)

    @property
    def later(self) -> list[int]:
        """The columns of all tasks but the base."""
        return [column for column in range(len(self)) if column != self.base]

    def save(self, folder: Path) -> None:
        """Writes the list into a bundle."""
        stated = {"base": self.base, "tasks": [asdict(task) for task in self.tasks]}
        (folder / TASKS_FILE).write_text(json.dumps(stated, indent=1), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> RankerTasks:
        """A bundle's tasks; a bundle from before declared tasks has the shipped ones."""
        path = folder / TASKS_FILE
        if not path.is_file():
            return SHIPPED_TASKS
        stated = json.loads(path.read_text(encoding="utf-8"))
        return RankerTasks(tuple(Task(**task) for task in stated["tasks"]), stated["base"])


# The start is declared, not fitted. Every later action contains the play, and what it adds is learned
# from plays that users chose themselves, not from what was shown; so the play leads. On the simulated
# world's validation seed 100, the play alone did as well as any static weights.
SHIPPED_TASKS = RankerTasks(
    (
        Task(PLAY, 2, *OPENING),
        Task("long_view", 3, 1.0, 0.15),
        Task("like", 4, *ENGAGEMENT),
        Task("follow", 6, 3.0, 0.05),
        Task("order", 11, *CONVERSION),
    )
)


def tasks_in_force(opening: str = PLAY) -> RankerTasks:
    """The shipped tasks, then the declared signals of engagement and conversion, by number.

    opening: what opens items in the log (`models.training.actions.opening`). Dislikes are no tasks:
    fusion weights lie on a simplex and cannot count against an item. Likings learn from them.
    """
    from models.training.actions import positive_signals

    declared = tuple(
        Task(
            signal.name,
            signal.number,
            *(CONVERSION if signal.role == "conversion" else ENGAGEMENT),
            valued="value" in signal.payload,
        )
        for signal in positive_signals()
    )
    if not declared:
        return SHIPPED_TASKS
    found = RankerTasks((*SHIPPED_TASKS.tasks, *declared)[:MAX_TASKS])
    if opening == PLAY or opening not in found.names:
        return found
    base = found.names.index(opening)
    gain, start = OPENING
    opened = replace(found.tasks[base], gain=gain, start=start)
    return RankerTasks((*found.tasks[:base], opened, *found.tasks[base + 1 :]), base)


def task_names(numbers: np.ndarray | None) -> tuple[str, ...]:
    """The names of an answer's tasks, int64 [T]; None from a bundle that does not state them."""
    if numbers is None:
        return SHIPPED_TASKS.names
    from streams.contract.declaration import contract

    names = contract().signals.name
    return tuple(names[number] for number in numbers.tolist())


def known_names(tasks: RankerTasks) -> tuple[str, ...]:
    """The tasks' names in this process's log, where a number's name may have changed."""
    return task_names(tasks.numbers)
