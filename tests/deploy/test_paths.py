"""Folders with blanks and signs, and other locales than UTF-8: they work, or are refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.services import paths, triton
from deploy.services.process import ServiceUnavailable, running, utf8_locale
from deploy.services.valkey import Valkey
from deploy.settings import Settings
from deploy.stack import Stack


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a\nb", os.fsdecode(b"\xff")])
def test_a_home_that_servers_misread_is_refused_before_anything_starts(
    tmp_path: Path, name: str
) -> None:
    stack = Stack(Settings(home=tmp_path / name))
    with pytest.raises(ServiceUnavailable, match=r"(?s)the home is .*TIDEMILL_HOME sets the home"):
        stack.start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["my project", "$(touch x)", "o'brien", "größe", "a;b&c"])
def test_a_path_for_the_stub_is_one_word_that_leads_to_the_folder(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    found = paths.shell_safe(folder, "models", "test")
    try:
        assert paths.is_shell_safe(found)
        assert found.resolve() == folder
    finally:
        paths.remove_links("test")
    assert not found.parent.exists()


def test_a_plain_path_is_given_as_it_is(tmp_path: Path) -> None:
    assert paths.shell_safe(tmp_path, "models", "test") == tmp_path
    assert not paths.link_folder("test").exists()


def test_a_temporary_folder_with_a_blank_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my tmp"
    folder.mkdir()
    monkeypatch.setattr(paths.tempfile, "gettempdir", lambda: str(folder))
    with pytest.raises(ServiceUnavailable, match="set TMPDIR"):
        paths.shell_safe(folder, "models", "test")


@pytest.mark.parametrize(
    ("environment", "changes"),
    [
        ({"LANG": "de_DE.UTF-8"}, False),
        ({"LC_ALL": "C.utf8", "LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "de_DE.ISO-8859-1"}, True),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, True),
        ({}, True),
    ],
)
def test_children_run_in_a_utf_8_locale(environment: dict[str, str], changes: bool) -> None:
    assert (utf8_locale(environment) != {}) is changes


def test_the_store_runs_in_a_folder_with_a_blank(tmp_path: Path) -> None:
    with running(Valkey(tmp_path / "my project")):
        pass


def test_triton_runs_in_a_folder_with_a_blank_and_another_locale(
    tmp_path: Path, triton_overlay: Path, write_doubling_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and backends behind a blank too, as in a checkout in such a folder."""
    import numpy as np

    from serving.clients.triton import TritonClient

    assert triton_overlay.exists()
    home = tmp_path / "my project (größe)"
    home.mkdir()
    monkeypatch.setenv("LC_ALL", "POSIX")
    repository = home / "models"
    write_doubling_model(repository, "doubling")
    server = triton.Triton(home / "logs", repository)
    with running(server, 120.0):
        client = TritonClient(server.grpc_address)
        got = client.infer("doubling", {"IN": np.ones(3, np.float32)}, timeout_s=20.0)
        client.close()
    server.sweep()
    assert got["OUT"].tolist() == [2.0, 2.0, 2.0]
    assert not paths.link_folder(server._link_key).exists()
