"""Several processes of one kind on one machine: each has a name of its own."""

from __future__ import annotations

import pytest

from deploy import process, state
from deploy.running import Process
from deploy.services.own import OwnProcess
from deploy.settings import Settings, SettingsError, load
from deploy.stack import own_processes

KAFKA = {"kind": "external", "bootstrap_servers": "127.0.0.1:9"}


def settings(home, doors=1, **more):
    return Settings(home=home, broker=KAFKA | {"doors": doors}, **more)


def test_a_stack_starts_as_many_doors_as_the_settings_say(tmp_path):
    names = own_processes(settings(tmp_path, doors=3))
    assert names == (
        *("batcher-1", "batcher-2", "batcher-3"),
        *("facts", "features", "gateway", "edge"),
    )
    assert own_processes(settings(tmp_path))[0] == "batcher"


def test_a_name_with_a_dash_is_a_kind_and_its_instance(tmp_path):
    argv = OwnProcess("batcher-2", tmp_path).command().argv
    assert list(argv[3:]) == ["batcher", "--home", str(tmp_path), "--instance", "2"]
    assert "--instance" not in OwnProcess("batcher", tmp_path).command().argv


def test_each_instance_says_by_its_own_name_that_it_is_ready(tmp_path):
    Process("features", settings(tmp_path, instance="2")).ready()
    assert state.is_ready(tmp_path, "features-2")
    assert not state.is_ready(tmp_path, "features")


def test_members_of_a_group_have_lasting_names_of_their_own(tmp_path):
    names = [
        Process("features", settings(tmp_path, instance=instance)).member
        for instance in ("", "2", "2")
    ]
    assert names[1] == names[2] != names[0]


def test_one_of_several_doors_without_a_name_is_refused(tmp_path, capsys):
    """Two that shared a name would end each other again and again."""
    state.write_settings(settings(tmp_path, doors=2))
    assert process.main(["batcher", "--home", str(tmp_path)]) == 2
    assert "--instance 1, or TIDEMILL_INSTANCE=1" in capsys.readouterr().err
    assert process._settings(tmp_path, "1", "batcher").instance == "1"
    assert process._settings(tmp_path, None, "facts").instance == ""


@pytest.mark.parametrize("wrong", ["a-b", "", "x" * 65, "a/b"])
def test_an_instance_that_could_be_no_name_is_refused(tmp_path, monkeypatch, capsys, wrong):
    state.write_settings(settings(tmp_path))
    with pytest.raises(SystemExit):
        process.main(["batcher", "--home", str(tmp_path), "--instance", wrong])
    assert "--instance" in capsys.readouterr().err
    monkeypatch.setenv("TIDEMILL_INSTANCE", wrong or "-")
    with pytest.raises(SettingsError, match="TIDEMILL_INSTANCE"):
        load()
