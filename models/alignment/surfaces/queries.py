"""The query recommender's update: clicks and orders on suggested queries.

Knows the network, its trie and contexts as of each slate. Texts, trie and anchors stay those of
the incumbent; the next training renews them.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.alignment.surfaces.contexts import contexts_at
from models.alignment.surfaces.slates import SurfaceSlates
from models.alignment.surfaces.update import SurfaceUpdate
from models.generation.bundle import Lexicon, read_query_bundle
from models.generation.data import QueryClick, QueryExamples, TriePaths, items_of, make_batch
from models.generation.inputs import canary_request
from models.generation.network import OneBarNetwork, read_network
from models.generation.prompt import encode_prompt
from models.generation.recipe import write_bundle
from models.generation.runtime import QueriesRuntime
from models.generation.train import TrainedQueries, query_log_probability
from models.layers.decode import DecodeTables
from models.recipe import TrainingLog
from models.release.canary import write_canary


@dataclass(frozen=True)
class QueriesPolicy:
    """A `models.alignment.surfaces.update.ScoredPolicy`.

    row: int64 [G, C], each candidate's row in `examples`, -1 at padding.
    """

    network: OneBarNetwork
    lexicon: Lexicon
    tables: DecodeTables
    slates: SurfaceSlates
    examples: QueryExamples
    row: np.ndarray
    paths: TriePaths

    def trained(self) -> Sequence[nn.Parameter]:
        return list(self.network.parameters())

    def log_scores(self, rows: Tensor) -> Tensor:
        """log P(query) among the legal queries, a sum over its words."""
        wanted = self.row[rows.numpy()]
        at = wanted >= 0
        scores = torch.full(wanted.shape, -torch.inf)
        if at.any():
            tables = self.tables
            batch = make_batch(self.examples, tables.trie, tables.crowd, self.paths, wanted[at])
            found = query_log_probability(self.network, batch)
            scores = scores.index_put(tuple(map(torch.from_numpy, np.nonzero(at))), found)
        return scores

    def write(self, bundle: Path) -> None:
        network = self.network.eval()
        embedding = network.word.weight.detach().numpy().copy()
        tables = replace(self.tables, embedding=embedding)
        write_bundle(TrainedQueries(network, self.lexicon, tables, []), bundle)
        write_canary(bundle, canary_request(self.lexicon.genres_of), QueriesRuntime)


def load_queries(incumbent: Path, log: TrainingLog, slates: SurfaceSlates) -> QueriesPolicy:
    """The incumbent over these slates, with contexts as of each slate.

    Queries that are not the model's (a fallback's, or taken down since) are left out.

    Raises `ReleaseError` for a bundle without weights.
    """
    network, (lexicon, tables) = read_network(incumbent), read_query_bundle(incumbent)
    first = [next((item for item in row if item is not None), "") for row in slates.item]
    contexts = contexts_at(
        log, items_of(log), list(zip(slates.users, first, slates.time_ms.tolist(), strict=True))
    )
    clicks: list[QueryClick] = []
    target: list[int] = []
    row = np.full(slates.real.shape, -1, np.int64)
    for group, context in enumerate(contexts):
        anchors = [lexicon.queries.texts[n] for n in lexicon.anchors.get(context.item_id, ())]
        for column in np.flatnonzero(slates.real[group]):
            query = slates.query[group, column]
            number = lexicon.queries.find(query) if query is not None else None
            if number is not None:
                row[group, column] = len(clicks)
                user, time_ms = slates.users[group], int(slates.time_ms[group])
                clicks.append(QueryClick(user, time_ms, query, context, anchors))
                target.append(number)
    examples = _examples(clicks, target, lexicon)
    known = replace(slates, real=row >= 0)
    paths = TriePaths.of(tables.trie)
    return QueriesPolicy(deepcopy(network), lexicon, tables, known, examples, row, paths)


def queries_update() -> SurfaceUpdate:
    """The update that `models.registry` names."""
    return SurfaceUpdate("queries", load_queries)


def _examples(clicks: Sequence[QueryClick], target: list[int], lexicon: Lexicon) -> QueryExamples:
    contexts = [click.context for click in clicks]
    texts = {text for each in contexts for text in (*each.user_query, *each.item_query)}
    texts |= {text for click in clicks for text in (*click.earlier, click.query)}
    found = ((text, lexicon.queries.find(text)) for text in texts)
    prompts = [
        encode_prompt(context, lexicon.vocabulary, lexicon.item_number, lexicon.genres_of)
        for context in contexts
    ]
    number = {text: n for text, n in found if n is not None}
    return QueryExamples(prompts, np.array(target, dtype=np.int64), clicks, lexicon, number)
