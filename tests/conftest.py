"""For all tests: workers of pytest share the machine's cores and what is costly to make; the slow files start first."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from coverage import Coverage

from shared_folder import shared_folder

ROOT = Path(__file__).resolve().parents[1]
MEASURING = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")  # by these a child process measures its coverage

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and OpenMP are loaded; child processes inherit it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does that to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers: files with slow tests first, so that the last ones to be handed out are short."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {test.path for test in items if test.get_closest_marker("slow")}
        items.sort(key=lambda test: test.path not in slow)  # stable: the order within a file stays


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Slow tests run without coverage, which costs half their time again; the floor is for what the quick reach."""
    if item.get_closest_marker("slow") is None:
        return (yield)
    paused = []
    while running := Coverage.current():  # in a worker there are two: the worker's own, and that of any child process
        running.stop()
        paused.append(running)
    with pytest.MonkeyPatch.context() as patch:
        for name in MEASURING:
            patch.delenv(name, raising=False)
        patch.setattr(os, "_exit", os._exit)  # restored at the end: coverage wraps it anew whenever it starts
        try:
            return (yield)
        finally:
            for stopped in reversed(paused):
                stopped.start()


@pytest.fixture(scope="session")
def phantom_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom test studies, by the phantom's own command; to be read only."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "lumbar_phantom", "--out", str(folder), "--studies", "2", "--seed", "31"]
        environment = {name: value for name, value in os.environ.items() if name not in MEASURING}
        subprocess.run([*command, "--split", "test"], check=True, capture_output=True, env=environment)

    return shared_folder(tmp_path_factory, "phantom-cohort", make)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lock file and the demo weights as they lie in a sealed folder, without its code; to be read only."""

    def make(folder: Path) -> None:
        shutil.copytree(ROOT / "weights" / "demo", folder / "weights")
        shutil.copy(ROOT / "weights_manifest.json", folder)

    return shared_folder(tmp_path_factory, "demo-bundle", make)


@pytest.fixture
def unmeasured_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes run without coverage, as those of slow tests do.

    For quick tests that are about how processes start and end: what their children compute is measured elsewhere.
    """
    for name in MEASURING:
        monkeypatch.delenv(name, raising=False)
