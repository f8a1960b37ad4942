"""The ranker's settings: examples, network size, optimiser.

Knows numbers. Does not know data or tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from models.layers.experts import Architecture
from models.ranking.grade.config import FusionTraining
from models.retrieval.factorisation.config import FactorisationConfig


@dataclass(frozen=True)
class RankerSize:
    """The network's size. Counts of users, videos and authors include NONE and COLD.

    Bundles store these fields by name.
    """

    users: int
    videos: int
    authors: int
    user_x: int
    video_x: int
    genres: int
    kinds: int
    tasks: int
    width: int = 32
    expert: int = 48
    shared_experts: int = 2
    architecture: Architecture = "ple"  # what is served; the others are its baselines


@dataclass(frozen=True)
class RankerTraining:
    """The optimiser's settings. `id_dropout`: share of ids hidden, to train the cold bucket."""

    epochs: int = 3
    groups: int = 256
    rate: float = 3e-3
    decay: float = 1e-4
    id_dropout: float = 0.1
    user_dropout: float = 0.5
    listwise: float = 1.0
    slot_rate: float = 6e-2  # of the slots' biases: few numbers, which must not lag behind
    threads: int = 1


@dataclass(frozen=True)
class RankerConfig:
    """Everything that decides a training run besides the log and the seed."""

    interactions: int = 12_000  # unlogged ones; see `data.unlogged_interactions`
    slates: int = 8_000
    evaluated_interactions: int = 3_000
    width: int = 32
    without: tuple[str, ...] = ()  # ITEM_FEATURES hidden from the network, for ablations
    training: RankerTraining = field(default_factory=RankerTraining)
    fusion: FusionTraining = field(default_factory=FusionTraining)
    liking: FactorisationConfig = field(default_factory=FactorisationConfig)
