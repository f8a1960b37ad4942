"""The files of a stack: one stack a home, lasting keys, and killed stacks cleaned up."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy import state
from deploy.services.process import Child, Command, wait_until
from deploy.settings import load
from deploy.state import AlreadyRunning, NotRunning, ServiceRecord


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Child]:
    """A child with a child of its own, as Triton has stubs."""
    code = "import subprocess,time; print(subprocess.Popen(['sleep','60']).pid, flush=True); time.sleep(60)"
    child = Child("sleeper", Command([sys.executable, "-c", code], tmp_path / "sleeper.log"))
    assert wait_until(lambda: child.tail().strip().isdigit(), 10)
    yield child
    child.kill()


def _record(child: Child, started_s: float) -> ServiceRecord:
    return ServiceRecord("sleeper", "running", child.pid, 0, started_s)


def test_a_second_stack_in_a_home_is_refused(tmp_path: Path) -> None:
    settings = load(home=tmp_path)
    with state.lock_home(tmp_path):
        state.write_settings(settings)
        code = (
            "import sys; from pathlib import Path; from deploy import state\n"
            "with state.lock_home(Path(sys.argv[1])): pass"
        )
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert second.returncode != 0
    assert f"process {os.getpid()}" in second.stderr
    assert "tidemill down" in second.stderr


def test_the_lock_is_freed_when_its_process_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from deploy import state\n"
        "with state.lock_home(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert state.home_is_locked(tmp_path)
        with pytest.raises(AlreadyRunning):
            state.lock_home(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
    assert not state.home_is_locked(tmp_path)


def test_processes_of_a_killed_stack_end_with_their_children(
    tmp_path: Path, sleeper: Child
) -> None:
    grandchild = int(sleeper.tail())
    state.write_services(tmp_path, [_record(sleeper, state.started_s(sleeper.pid))])
    assert state.reap(tmp_path) == ["sleeper"]
    assert wait_until(lambda: not sleeper.alive(), 5)
    assert wait_until(lambda: not _runs(grandchild), 5)


def test_another_process_with_a_reused_id_is_not_ended(tmp_path: Path, sleeper: Child) -> None:
    later = state.started_s(sleeper.pid) + 100  # the recorded process started later
    state.write_services(tmp_path, [_record(sleeper, later)])
    assert state.reap(tmp_path) == []
    time.sleep(0.1)
    assert sleeper.alive()


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = load(home=tmp_path, gateway={"port": 8123})
    state.write_settings(settings)
    assert state.read_settings(tmp_path) == settings
    state.forget_stack(tmp_path)
    with pytest.raises(NotRunning, match="tidemill up"):
        state.read_settings(tmp_path)


def test_keys_are_created_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    key = state.impression_key(tmp_path)
    assert len(bytes.fromhex(key)) == 32
    assert state.impression_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_commands_use_the_demos_stack_if_only_that_runs(tmp_path: Path) -> None:
    assert state.home_in_use(tmp_path) == tmp_path
    with state.lock_home(tmp_path / state.DEMO):
        assert state.home_in_use(tmp_path) == tmp_path / state.DEMO
        with state.lock_home(tmp_path):
            assert state.home_in_use(tmp_path) == tmp_path
