"""Laws of the installation: the right Python or a clear word, and nothing done twice."""

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


def test_a_wrong_python_is_named_with_the_fix(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3", "3.9.2", right=False)
    done = _run_shell(tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11, and here is Python 3.9.2" in done.stderr
    assert "apt-get install python3.11" in done.stderr


@pytest.mark.parametrize("name", ["python3.11", "python3", "python"])
def test_python_may_be_called_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    _fake_python(tmp_path, name, "3.11.2", right=True)
    done = _run_shell(tmp_path)
    assert done.stdout == f"{name} runs {ROOT}/deploy/install.py\n"


def test_the_python_asked_for_is_taken_first(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3.11", "3.11.2", right=True)
    _fake_python(tmp_path, "mine", "3.11.9", right=True)
    done = _run_shell(tmp_path, PYTHON="mine")
    assert done.stdout.startswith("mine runs")


@pytest.fixture
def ran(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last word of each command that the installation would run; `make` runs them really."""
    words: list[str] = []
    monkeypatch.setattr(install, "_sound", lambda venv: venv.exists())
    monkeypatch.setattr(install, "_get_uv", lambda: words.append("uv"))
    for name in ("_run", "_run_shown"):
        monkeypatch.setattr(install, name, lambda argv: words.append(argv[-1]))
    return words


def test_what_stands_is_not_installed_again(install: ModuleType, ran: list[str]) -> None:
    install._install()
    packages = ["uv", str(install.REQUIREMENTS), "uv", str(install.ROOT)]
    assert ran == [*packages, *install.COMPILED]
    ran.clear()
    install._install()
    assert ran == []


def test_a_changed_lock_is_installed_and_the_project_left_alone(
    install: ModuleType, ran: list[str], tmp_path: Path
) -> None:
    install._install()
    ran.clear()
    install.REQUIREMENTS = tmp_path / "changed.lock"
    install.REQUIREMENTS.write_text("rich==1 --hash=sha256:00\n")
    install._install()
    assert ran == ["uv", str(install.REQUIREMENTS), *install.COMPILED]


def test_a_changed_loop_is_compiled_again_and_no_other(
    install: ModuleType, ran: list[str], tmp_path: Path
) -> None:
    install._install()
    ran.clear()
    changed = tmp_path / "loops.py"
    changed.write_text("# other code")
    install.COMPILED["streams.kernels.recent_keys"] = [changed]
    install._install()
    assert ran == ["streams.kernels.recent_keys"]


def test_a_failed_installation_is_not_taken_for_done(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: list[str]) -> None:
        raise subprocess.CalledProcessError(2, argv)

    monkeypatch.setattr(install, "_sound", lambda venv: venv.exists())
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
