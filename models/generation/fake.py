"""A fake query recommender: clicked queries, then words of the genres and the title.

Ships for users' tests as well, through `serving.fakes`. Does not know the real model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.signature import byte_list, text_list


def fake_queries(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """K queries: those clicked under the item, words of its genres and title, then more words."""
    k, blocked = int(inputs["k"][0]), {each.lower() for each in text_list(inputs["blocked"])}
    clicked = {each.lower() for each in text_list(inputs["video_query"])}
    words = [
        word for name in ("video_query", "genres", "title") for word in text_list(inputs[name])
    ]
    texts = [word.lower() for word in words] + [f"more films {n}" for n in range(2 * k)]
    chosen = [text for text in dict.fromkeys(texts) if text and text not in blocked][:k]
    return {
        "query": byte_list(chosen),
        "score": -np.arange(1, len(chosen) + 1, dtype=np.float32),
        "anchor": np.array([int(text in clicked) for text in chosen], np.int64),
    }
