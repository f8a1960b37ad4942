"""A process that was told to stop ends, whatever its threads are stuck in."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOLD = """
import ctypes, sys, threading
from deploy import running

running.END_S = float(sys.argv[1])
stop = running.Stop()
threading.Timer(0.1, stop.set).start()
stop.wait()
{then}
"""
# Called through PyDLL, C keeps the interpreter's lock: no thread of Python runs any more.
STUCK = "ctypes.PyDLL(None).sleep(100)"


def told(then: str, end_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TOLD.format(then=then), str(end_s)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize("stuck", [STUCK, "threading.Event().wait()"])
def test_a_stuck_process_ends_and_says_where_it_was(stuck):
    done = told(stuck, 1.0)
    assert done.returncode == 1
    assert "most recent call first" in done.stderr


def test_one_that_ends_by_itself_is_left_alone():
    done = told("sys.exit(3)", 60.0)
    assert (done.returncode, done.stderr) == (3, "")
