"""Feast's provider whose `materialize` rebuilds rows from the event log.

Knows Feast's interface. The rebuild is `tidemill features backfill`, in a process of its own: it
knows the stack's settings and what live folds still have to count. It rebuilds all entities, so
one call of `materialize` starts it once; time ranges do not apply.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from feast import RepoConfig
from feast.infra.passthrough_provider import PassthroughProvider


class LogProvider(PassthroughProvider):  # type: ignore[misc]
    """The local provider, but for `materialize`."""

    def __init__(self, config: RepoConfig) -> None:
        super().__init__(config)
        self._rebuilt = False

    def materialize_single_feature_view(self, config: RepoConfig, *_: Any, **__: Any) -> None:
        """Rebuilds every row.

        Raises:
            RuntimeError: the backfill failed; its output says why.
        """
        if self._rebuilt:
            return
        home = Path(config.offline_store.log_dir).parent
        command = [sys.executable, "-m", "deploy.cli.main", "features", "backfill", "--rebuild"]
        environment = {**os.environ, "TIDEMILL_HOME": str(home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
            raise RuntimeError(f"`tidemill features backfill` failed:\n{last}")
        self._rebuilt = True
