"""Several processes of one kind on one machine: each has a name of its own."""

from __future__ import annotations

from importlib import import_module

import pytest

from deploy import process, renamed, state
from deploy.processes import PROCESSES
from deploy.processes.lifecycle import Process, StopEvent
from deploy.processes.own import OwnProcess
from deploy.settings import Settings, SettingsError, load
from deploy.stack import own_processes

KAFKA = {"kind": "external", "bootstrap_servers": "127.0.0.1:9"}


def settings(home, replicas=1, **more):
    return Settings(home=home, broker=KAFKA, ingest={"replicas": replicas}, **more)


def test_a_stack_starts_as_many_ingest_replicas_as_the_settings_say(tmp_path):
    names = own_processes(settings(tmp_path, replicas=3))
    assert names == (
        *("batcher-1", "batcher-2", "batcher-3"),
        *("log-writer", "features", "gateway", "kafka-requests"),
    )
    assert own_processes(settings(tmp_path))[0] == "batcher"


def test_a_dash_separates_an_instance_from_its_kind(tmp_path):
    argv = OwnProcess("batcher-2", tmp_path).command().argv
    assert list(argv[3:]) == ["batcher", "--home", str(tmp_path), "--instance", "2"]
    argv = OwnProcess("log-writer-2", tmp_path).command().argv
    assert list(argv[3:]) == ["log-writer", "--home", str(tmp_path), "--instance", "2"]
    for name in ("batcher", "log-writer", "kafka-requests"):
        argv = OwnProcess(name, tmp_path).command().argv
        assert list(argv[3:]) == [name, "--home", str(tmp_path)]


def test_each_instance_is_marked_as_ready_by_its_own_name(tmp_path):
    Process("features", settings(tmp_path, instance="2")).ready()
    assert state.is_ready(tmp_path, "features-2")
    assert not state.is_ready(tmp_path, "features")


def test_group_instance_ids_are_unique_and_survive_a_restart(tmp_path):
    names = [
        Process("features", settings(tmp_path, instance=instance)).group_instance_id
        for instance in ("", "2", "2")
    ]
    assert names[1] == names[2] != names[0]


def test_a_renamed_process_keeps_its_names_in_kafka_and_on_disk(tmp_path):
    process = Process("log-writer", settings(tmp_path, instance="2"))
    assert process.storage_name == "facts"
    assert process.group_instance_id.startswith("facts-2-")
    assert process.label == "log-writer-2"
    assert Process("kafka-requests", settings(tmp_path)).storage_name == "edge"


@pytest.mark.parametrize(("old", "new"), renamed.PROCESSES.items())
def test_an_old_process_name_still_starts_it_and_warns(tmp_path, monkeypatch, caplog, old, new):
    renamed.warn.cache_clear()
    started = []
    module = import_module(f"deploy.processes.{PROCESSES[new]}")
    monkeypatch.setattr(module, "run", lambda process: started.append(process.name) or 0)
    monkeypatch.setattr(Process, "observe", lambda _: None)
    monkeypatch.setattr(StopEvent, "set", lambda _: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    state.write_settings(settings(tmp_path))
    assert process.main([old, "--home", str(tmp_path)]) == 0
    assert started == [new]
    assert f"{old} is now {new}" in caplog.text


def test_one_of_several_replicas_without_a_name_is_refused(tmp_path, capsys):
    """Two of the same name would fence each other again and again."""
    state.write_settings(settings(tmp_path, replicas=2))
    assert process.main(["batcher", "--home", str(tmp_path)]) == 2
    assert "--instance 1, or TIDEMILL_INSTANCE=1" in capsys.readouterr().err
    assert process.settings_of("batcher", tmp_path, "1").instance == "1"
    assert process.settings_of("log-writer", tmp_path, None).instance == ""


@pytest.mark.parametrize("wrong", ["a-b", "", "x" * 65, "a/b"])
def test_an_instance_that_could_be_no_name_is_refused(tmp_path, monkeypatch, capsys, wrong):
    state.write_settings(settings(tmp_path))
    with pytest.raises(SystemExit):
        process.main(["batcher", "--home", str(tmp_path), "--instance", wrong])
    assert "--instance" in capsys.readouterr().err
    monkeypatch.setenv("TIDEMILL_INSTANCE", wrong or "-")
    with pytest.raises(SettingsError, match="TIDEMILL_INSTANCE"):
        load()
