"""Seal and publish: ``python build_dataset.py --help``."""

import subprocess
import sys
from pathlib import Path

from lumbar.errors import CohortError
from lumbar_publish.cli import main
from lumbar_publish.names import Layout


def make_sample(folder: Path) -> None:
    """One phantom study in the competition's layout, by its own command: the packages never import one another."""
    command = [sys.executable, "-m", "lumbar_phantom", "--out", str(folder), "--studies", "1", "--seed", "1"]
    done = subprocess.run([*command, "--split", "test"], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise CohortError(f"lumbar_phantom exited {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")


if __name__ == "__main__":
    sys.exit(main(Layout(Path(__file__).resolve().parent), make_sample))
