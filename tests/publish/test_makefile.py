from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Makefile and what its targets depend on, with an environment that was installed after them."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-kaggle.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for venv in (".venv", ".venv-parity"):
        (tmp_path / venv).mkdir()
        (tmp_path / venv / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("target", ["dry-run", "test", "check", "parity", "seal"])
def test_installed_environment_is_not_installed_again(clone: Path, target: str) -> None:
    done = make(clone, "-n", target)
    assert done.returncode == 0, done.stderr
    assert "pip install" not in done.stdout
    assert "-m venv" not in done.stdout


def test_changed_dependencies_are_installed(clone: Path) -> None:
    os.utime(clone / "pyproject.toml", (2e9, 2e9))
    assert make(clone, "-q", "venv").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["venv", "CANDIDATES=no-such-python"], "error: no Python 3.11 or newer found"),
        (["venv", "PYTHON=/bin/false"], "error: /bin/false: no Python 3.11 or newer found"),
        ([".venv-parity/.installed", "PYTHON312=/bin/false"], "error: /bin/false: no Python 3.12 found"),
    ],
)
def test_missing_python_is_said_in_one_line(clone: Path, arguments: list[str], message: str) -> None:
    done = make(clone, "-B", *arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(message)


def test_own_data_needs_no_phantom(clone: Path) -> None:
    assert "lumbar_phantom" in make(clone, "-n", "dry-run").stdout
    own = make(clone, "-n", "dry-run", "DATA=/some/where", "KAGGLE_LIKE=1").stdout
    assert "lumbar_phantom" not in own
    assert '--data "/some/where"' in own
    assert "--kaggle-like" in own
    assert "--kaggle-like" not in make(clone, "-n", "dry-run", "KAGGLE_LIKE=0").stdout
