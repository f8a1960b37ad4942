"""What a query bundle holds beside its two graphs, and how it is written and read.

Knows file names. Numpy and json only. Does not know the network or how it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.generation.words import QuerySet, Vocabulary
from models.layers.decode import Tables
from models.layers.trie import Trie

READER, WRITER = "reader.onnx", "writer.onnx"
_TABLES, _TEXTS = "tables.npz", "texts.json"


@dataclass(frozen=True)
class Lexicon:
    """Every name the model knows.

    video_number: videos with an embedding of their own, numbered from 1.
    anchors: video -> numbers of the legal queries clicked under it, repeats kept.
    """

    queries: QuerySet
    vocabulary: Vocabulary
    video_number: Mapping[str, int]
    genres_of: Mapping[str, Sequence[str]]
    anchors: Mapping[str, Sequence[int]] = field(default_factory=dict)


def write(folder: Path, lexicon: Lexicon, tables: Tables) -> None:
    texts = {
        "queries": lexicon.queries.texts,
        "vocabulary": lexicon.vocabulary.texts,
        "video_number": lexicon.video_number,
        "genres_of": {video: list(genres) for video, genres in lexicon.genres_of.items()},
        "anchors": {video: list(map(int, ids)) for video, ids in lexicon.anchors.items()},
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


def read(folder: Path) -> tuple[Lexicon, Tables]:
    texts = json.loads((folder / _TEXTS).read_text(encoding="utf-8"))
    with np.load(folder / _TABLES) as stored:
        trie = Trie(stored["word"], stored["parent"], stored["start"], stored["leaf"])
        tables = Tables(trie, stored["embedding"], stored["crowd"])
    lexicon = Lexicon(
        QuerySet(tuple(texts["queries"])),
        Vocabulary(tuple(texts["vocabulary"])),
        texts["video_number"],
        texts["genres_of"],
        texts["anchors"],
    )
    return lexicon, tables
