from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Makefile and what its targets depend on, with an environment that was installed after them."""
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "constraints-kaggle.txt",
        "constraints-kaggle-next.txt",
    ):
        shutil.copy(REPOSITORY / name, tmp_path)
    for venv in (".venv", ".venv-parity", ".venv-parity-next"):
        (tmp_path / venv).mkdir()
        (tmp_path / venv / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "target", ["dry-run", "test", "check", "parity", "parity-now", "parity-next", "constraints", "seal"]
)
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
        ([".venv-parity-next/.installed", "PYTHON313=/bin/false"], "error: /bin/false: no Python 3.13 found"),
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


@pytest.mark.parametrize(
    ("arguments", "is_measured"),
    [("", True), ("-v -rfE --durations=40", True), ('-m "not slow"', False), ("tests/docs", False), ("-k x", False)],
)
def test_coverage_is_measured_where_all_tests_run(clone: Path, arguments: str, is_measured: bool) -> None:
    command = make(clone, "-n", "test", f"PYTEST_ARGS={arguments}").stdout
    assert ("--cov" in command) == is_measured
    assert command.rstrip().endswith(arguments)


def test_bytecode_is_kept_whatever_the_caller_says(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of a container may forbid it, and each process would compile torch anew."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = make(clone, "--eval=shown:; @env", "shown")
    assert done.returncode == 0, done.stderr
    assert "NUMBA_CACHE_DIR=" in done.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


def test_parity_rehearses_both_images(clone: Path) -> None:
    both = make(clone, "-n", "parity").stdout
    for venv, out in ((".venv-parity", "dist/parity"), (".venv-parity-next", "dist/parity-next")):
        assert f"{venv}/bin/python -m pytest" in both
        assert f"{venv}/bin/python -m lumbar_publish.rehearsal.dry_run" in both
        assert f"--out {out} --keep-seal" in both
    assert both.count("--agree-with dist/dry-run/kaggle/working/submission.csv") == 2
    assert both.count(".venv/bin/python -m lumbar_publish.rehearsal.dry_run") == 1
    assert ".venv-parity/" not in make(clone, "-n", "parity-next").stdout


@pytest.mark.parametrize("name", ["constraints-kaggle.txt", "constraints-kaggle-next.txt"])
def test_constraints_of_an_image_allow_what_the_project_asks_for(name: str) -> None:
    asked = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = {line.split(">=")[0].strip(): line.split(">=")[1].strip() for line in asked if ">=" in line}
    pins = [line for line in (REPOSITORY / name).read_text().splitlines() if "==" in line]
    assert len(pins) >= 9
    for pin in pins:
        package, version = pin.split("==")
        numbers = [[int(part) for part in text.split(".")] for text in (version, lowest.get(package, "0"))]
        assert numbers[0] >= numbers[1], pin
