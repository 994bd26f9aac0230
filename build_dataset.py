"""Seal and publish: ``python build_dataset.py --help``."""

import subprocess
import sys
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.io.signals import run_as_process
from lumbar_publish.cli import main
from lumbar_publish.names import Layout

SAMPLE_LIMIT_S = 1800.0  # on a busy machine, in a fresh clone, compiling takes minutes of it


def make_sample(folder: Path) -> None:
    """One phantom study in the competition's layout, by its own command: the packages never import one another."""
    command = [sys.executable, "-m", "lumbar_phantom", "--out", str(folder), "--studies", "1", "--seed", "1"]
    command += ["--split", "test"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SAMPLE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise CohortError(
            f"lumbar_phantom: no study within {SAMPLE_LIMIT_S:g} s: name studies of yours with --sample ROOT"
        ) from None
    if done.returncode:
        raise CohortError(f"lumbar_phantom exited {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")


if __name__ == "__main__":
    run_as_process(lambda: main(Layout(Path(__file__).resolve().parent), make_sample))
