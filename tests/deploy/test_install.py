"""The installation: the right Python or a clear error, and nothing done twice."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install(tmp_path: Path) -> ModuleType:
    """deploy/install.py with its environment under a temporary folder."""
    spec = importlib.util.spec_from_file_location("install_script", ROOT / "deploy" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VENV = tmp_path / ".venv"
    module.UV = module.VENV / "bin" / "uv"
    module.UV.parent.mkdir(parents=True)
    return module


def _fake_python(folder: Path, name: str, version: str, right: bool) -> None:
    script = folder / name
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "Python {version}"; exit 0; }}\n'
        f'[ "$1" = -c ] && exit {0 if right else 1}\necho "{name} runs $1"\n'
    )
    script.chmod(0o755)


def _run_shell(path: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{path}:/usr/bin-none:/bin-none", **extra}
    os.symlink("/usr/bin/dirname", path / "dirname")
    os.symlink("/bin/cat", path / "cat")
    return subprocess.run(
        ["/bin/sh", str(ROOT / "deploy" / "install.sh")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wrong_python_is_reported_with_the_fix(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3", "3.9.2", right=False)
    done = _run_shell(tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11, and here is Python 3.9.2" in done.stderr
    assert "apt-get install python3.11" in done.stderr


@pytest.mark.parametrize("name", ["python3.11", "python3", "python"])
def test_python_is_found_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    _fake_python(tmp_path, name, "3.11.2", right=True)
    done = _run_shell(tmp_path)
    assert done.stdout == f"{name} runs {ROOT}/deploy/install.py\n"


def test_the_requested_python_is_used_first(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3.11", "3.11.2", right=True)
    _fake_python(tmp_path, "mine", "3.11.9", right=True)
    done = _run_shell(tmp_path, PYTHON="mine")
    assert done.stdout.startswith("mine runs")


@pytest.fixture
def ran(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last argument of each command that the installation would run."""
    arguments: list[str] = []
    monkeypatch.setattr(install, "_is_usable", lambda venv: venv.exists())
    monkeypatch.setattr(install, "_get_uv", lambda: arguments.append("uv"))
    for name in ("_run", "_run_shown"):
        monkeypatch.setattr(install, name, lambda argv: arguments.append(argv[-1]))
    return arguments


def test_a_complete_installation_is_not_repeated(install: ModuleType, ran: list[str]) -> None:
    install._install()
    packages = ["uv", str(install.REQUIREMENTS), "uv", str(install.ROOT)]
    assert ran == [*packages, "deploy.compile"]
    ran.clear()
    install._install()
    assert ran == []


def test_a_changed_lock_is_installed_without_the_project(
    install: ModuleType, ran: list[str], tmp_path: Path
) -> None:
    install._install()
    ran.clear()
    install.REQUIREMENTS = tmp_path / "changed.lock"
    install.REQUIREMENTS.write_text("rich==1 --hash=sha256:00\n")
    install._install()
    assert ran == ["uv", str(install.REQUIREMENTS), "deploy.compile"]


def test_a_changed_kernel_is_compiled_again(
    install: ModuleType, ran: list[str], tmp_path: Path
) -> None:
    install._install()
    ran.clear()
    changed = tmp_path / "fold.py"
    changed.write_text("# other code")
    install.KERNELS[0] = changed
    install._install()
    assert ran == ["deploy.compile"]


def test_a_failed_installation_is_not_stamped(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: list[str]) -> None:
        raise subprocess.CalledProcessError(2, argv)

    monkeypatch.setattr(install, "_is_usable", lambda venv: venv.exists())
    monkeypatch.setattr(install, "_get_uv", lambda: None)
    monkeypatch.setattr(install, "_run_shown", fail)
    with pytest.raises(subprocess.CalledProcessError):
        install._install()
    assert not install._stamped("packages", install.REQUIREMENTS)


def test_the_installer_is_pinned_by_hash(install: ModuleType) -> None:
    lock = install.INSTALLER.read_text()
    assert lock.startswith("uv==")
    assert lock.count("sha256:") > 10
    assert len(hashlib.sha256().hexdigest()) == len(lock.split("sha256:")[1].split()[0])
