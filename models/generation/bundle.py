"""Files of a query bundle beside its two graphs: texts and tables.

Knows file names. Numpy and json only. Does not know the network or its training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.generation.words import QuerySet, WordVocabulary
from models.layers.decode import DecodeTables
from models.layers.trie import Trie

READER, WRITER = "reader.onnx", "writer.onnx"
_TABLES, _TEXTS = "tables.npz", "texts.json"


@dataclass(frozen=True)
class Lexicon:
    """Every text and id of the model.

    item_number: items with an embedding of their own, numbered from 1; genres_of: of every item;
    anchors: item -> numbers of the legal queries clicked under it, with repeats.
    """

    queries: QuerySet
    vocabulary: WordVocabulary
    item_number: Mapping[str, int]
    genres_of: Mapping[str, Sequence[str]]
    anchors: Mapping[str, Sequence[int]] = field(default_factory=dict)


def write_query_bundle(folder: Path, lexicon: Lexicon, tables: DecodeTables) -> None:
    """Writes texts.json and tables.npz."""
    texts = {
        "queries": lexicon.queries.texts,
        "vocabulary": lexicon.vocabulary.texts,
        "video_number": lexicon.item_number,
        "genres_of": {item_id: list(genres) for item_id, genres in lexicon.genres_of.items()},
        "anchors": {item_id: list(map(int, ids)) for item_id, ids in lexicon.anchors.items()},
    }
    (folder / _TEXTS).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    trie = tables.trie
    np.savez(
        folder / _TABLES,
        embedding=tables.embedding,
        crowd=tables.crowd,
        word=trie.word,
        parent=trie.parent,
        start=trie.start,
        leaf=trie.leaf,
    )


def read_query_bundle(folder: Path) -> tuple[Lexicon, DecodeTables]:
    """Reads what `write_query_bundle` wrote."""
    texts = json.loads((folder / _TEXTS).read_text(encoding="utf-8"))
    with np.load(folder / _TABLES) as stored:
        trie = Trie(stored["word"], stored["parent"], stored["start"], stored["leaf"])
        tables = DecodeTables(trie, stored["embedding"], stored["crowd"])
    lexicon = Lexicon(
        QuerySet(tuple(texts["queries"])),
        WordVocabulary(tuple(texts["vocabulary"])),
        texts["video_number"],
        texts["genres_of"],
        texts["anchors"],
    )
    return lexicon, tables
