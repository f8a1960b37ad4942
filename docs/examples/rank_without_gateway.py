"""Rank items for one user: features from the online store, scores from Triton, no gateway.

    python docs/examples/rank_without_gateway.py u196 50 181 --home .tidemill \
        --store 127.0.0.1:6379 --triton 127.0.0.1:8000

`tidemill status` says where the store and Triton listen. Prints one JSON line per item, best first.
Needs the packages `streams`, `features` and `models` of this project, and httpx.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from features.feast.registry import open_store
from features.store import FeatureFrame
from features.stored_declaration import adopt, read_declaration
from models.ranking.ple.inputs import SIGNATURE, assemble_request
from models.ranking.tasks import task_names
from streams.catalogue import Catalogue, CatalogueLog


def authors_of_lists(user: FeatureFrame, catalogue: Catalogue) -> dict[str, str]:
    """The author of each item in the user's lists, which the ranker counts."""
    names = ("engaged_video_id", "shown_video_id")
    listed = {item_id for name in names for item_id in user.columns[name][0] or ()}
    found = ((item_id, catalogue.get(item_id)) for item_id in listed)
    return {item_id: item.author_id or "" for item_id, item in found if item is not None}


def tensors_of(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The ranker's inputs, assembled by the function that trains and serves it."""
    log_dir = args.home / "log"
    adopt(read_declaration(log_dir))  # signals and features that the stack's owner declared
    catalogue = CatalogueLog(log_dir).load()
    items = [catalogue.get(item_id) for item_id in args.items]
    if unknown := [i for i, item in zip(args.items, items, strict=True) if item is None]:
        raise SystemExit(f"not in the catalogue: {', '.join(unknown)}")
    store = open_store(
        registry_path=args.home / "registry.db",
        address=args.store,
        db=args.db,
        project=args.project,
    )
    now_ms = args.now_ms or time.time_ns() // 1_000_000
    user = store.read("user", [args.user], now_ms)
    about = store.read("video", args.items, now_ms)
    authors = store.read("author", [item.author_id or "" for item in items], now_ms)
    authors_known = authors_of_lists(user, catalogue)
    return assemble_request(user, about, authors, items, authors_known, now_ms)


def infer(address: str, model: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One request over Triton's HTTP protocol (KServe v2) in JSON."""
    datatype = {spec.name: spec.dtype for spec in SIGNATURE.inputs}
    inputs = [
        {"name": name, "shape": t.shape, "datatype": datatype[name], "data": t.ravel().tolist()}
        for name, t in tensors.items()
    ]
    reply = httpx.post(f"http://{address}/v2/models/{model}/infer", json={"inputs": inputs})
    if reply.status_code != 200:
        raise SystemExit(f"Triton answers {reply.status_code}: {reply.text}")
    dtype = {spec.name: spec.numpy_dtype for spec in SIGNATURE.outputs}
    return {
        out["name"]: np.array(out["data"], dtype[out["name"]]).reshape(out["shape"])
        for out in reply.json()["outputs"]
        if out["name"] in dtype  # `answers` belongs to calls with several requests
    }


def ranked(items: Sequence[str], out: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Best first: the item, its score and P(action) of each task."""
    tasks = task_names(out["tasks"])
    return [
        {
            "item_id": items[row],
            "score": float(out["score"][row]),
            "p": dict(zip(tasks, out["p"][row].tolist(), strict=True)),
        }
        for row in np.argsort(-out["score"], kind="stable").tolist()
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user")
    parser.add_argument("items", nargs="+")
    parser.add_argument("--home", type=Path, default=Path(".tidemill"))
    parser.add_argument("--store", default="127.0.0.1:6379")
    parser.add_argument("--db", type=int, default=0)
    parser.add_argument("--project", default="tidemill")
    parser.add_argument("--triton", default="127.0.0.1:8000")
    parser.add_argument("--model", default="ranker")
    parser.add_argument("--now-ms", type=int, default=0, help="the stack's time; else the clock")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    for line in ranked(args.items, infer(args.triton, args.model, tensors_of(args))):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
