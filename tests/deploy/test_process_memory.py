"""The stack's processes leave out what they do not use: pandas, Feast and what it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.services.process import ServiceUnavailable, running
from deploy.services.valkey import Valkey
from deploy.settings import Settings, StoreSettings

ROOT = Path(__file__).parents[2]
MAKE_ARRAYS = """
import sys
from deploy.processes.tuning import keep_pandas_out_of_pyarrow
{keep}
import pyarrow as pa
pa.array(["a", None]); pa.table({{"n": [1.5]}}).to_pylist()
print("pandas" in sys.modules)
import pandas
assert pandas.Series([1]).sum() == 1
"""


def _pandas_loaded(keep: str) -> str:
    code = MAKE_ARRAYS.format(keep=keep)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_pyarrow_imports_pandas_unless_it_is_kept_out_and_pandas_stays_usable() -> None:
    assert _pandas_loaded("") == "True"
    assert _pandas_loaded("keep_pandas_out_of_pyarrow()") == "False"


@pytest.mark.slow
def test_feasts_registry_is_written_by_a_process_of_its_own(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path)
    try:
        with running(valkey):
            store = StoreSettings(address=valkey.address)
            settings = Settings(home=tmp_path / "home", store=store)
            subprocess.run(
                [sys.executable, "-m", "deploy.processes.features"],
                input=settings.model_dump_json().encode(),
                cwd=ROOT,
                check=True,
            )
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))
    assert settings.registry_path.exists()
