"""A process whose stop event is set ends, even if its threads are stuck."""

from __future__ import annotations

import subprocess
import sys

import pytest

STOPPING = """
import ctypes, sys, threading
from deploy.processes import lifecycle

lifecycle.STOP_TIMEOUT_S = float(sys.argv[1])
stop = lifecycle.StopEvent()
threading.Timer(0.1, stop.set).start()
stop.wait()
{then}
"""
# A call through PyDLL holds the GIL: no other Python thread runs.
STUCK = "ctypes.PyDLL(None).sleep(100)"


def stopping(then: str, end_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STOPPING.format(then=then), str(end_s)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize("stuck", [STUCK, "threading.Event().wait()"])
def test_a_stuck_process_ends_and_dumps_its_stacks(stuck):
    done = stopping(stuck, 1.0)
    assert done.returncode == 1
    assert "most recent call first" in done.stderr


def test_a_process_that_ends_by_itself_is_not_affected():
    done = stopping("sys.exit(3)", 60.0)
    assert (done.returncode, done.stderr) == (3, "")
