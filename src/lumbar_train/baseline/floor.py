"""The floor of a synthetic cohort: the answer of an oracle that knows the true narrowing.

It comes from the phantom's command, because the packages in src/ never import one another. Without that package, or
without a truth table beside the images, there is no floor to show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lumbar.metric import align_submission, read_table

_TIMEOUT_S = 120


def floor_probs(root: Path, split: str, study_ids: Sequence[int]) -> NDArray[np.float64] | None:
    """Probabilities (N, 25, 3) of the studies, or None if the truth is not known."""
    if not (root / "truth.parquet").is_file():
        return None
    with tempfile.TemporaryDirectory(prefix="lumbar-floor-") as scratch:
        out = Path(scratch) / "floor.csv"
        command = [sys.executable, "-m", "lumbar_phantom.oracle", "--data", str(root), "--split", split]
        command += ["--out", str(out)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if process.returncode or not out.is_file():
            return None
        return align_submission(read_table(out, "the floor"), list(map(int, study_ids)))
