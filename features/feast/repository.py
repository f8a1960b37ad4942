"""A Feast repository of the declared features, for `feast -c`, `FeatureStore(repo_path=…)` and
`feast serve`.

Knows the two files of a repository. Imports Feast only where one reads `definitions.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

DEFINITIONS_FILE = '''\
"""The objects that tidemill declares; `feast apply` leaves them as they are."""

from pathlib import Path

from features.feast.registry import declared_objects
from features.stored_declaration import adopt, read_declaration

adopt(read_declaration(Path({log_dir})))
globals().update(declared_objects())
'''


def repo_config(
    project: str, registry_path: Path, connection: Mapping[str, str], log_dir: Path
) -> dict[str, Any]:
    """The repository's configuration; `connection`: what `StoreLogin.feast_settings` returns."""
    return {
        "project": project,
        "provider": "features.feast.provider.LogProvider",
        "registry": str(registry_path.absolute()),
        "online_store": {"type": "features.feast.online_store.TilesOnlineStore", **connection},
        "offline_store": {
            "type": "features.feast.offline_store.EventLogOfflineStore",
            "log_dir": str(log_dir.absolute()),
        },
        "entity_key_serialization_version": 3,
    }


def write_repository(folder: Path, config: Mapping[str, Any]) -> Path:
    """Writes `feature_store.yaml` (readable by the owner only: it may hold a password) and
    `definitions.py`. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log_dir = config["offline_store"]["log_dir"]
    (folder / "definitions.py").write_text(DEFINITIONS_FILE.format(log_dir=repr(log_dir)))
    path = folder / "feature_store.yaml"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(config, option=orjson.OPT_INDENT_2))  # JSON is YAML
    return folder
