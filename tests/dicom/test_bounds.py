"""The decoder's tests once more with every index checked: numba raises IndexError where one leaves its array."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lumbar import dicom

pytestmark = pytest.mark.usefixtures("unmeasured_children")

HERE = Path(__file__).parent


@pytest.mark.slow
def test_decoder_tests_pass_with_bounds_checking(tmp_path):
    # Numba would take unchecked code from the usual cache; one for each state of the sources, since numba looks only at
    # the file of the function itself, not at what that calls.
    sources = sorted(Path(dicom.__file__).parent.rglob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = HERE.parents[1] / ".numba_cache" / f"bounds-{state}"
    files = [
        str(path) for path in sorted(HERE.glob("test_*.py")) if path.stem not in ("test_fuzz", Path(__file__).stem)
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'inner'}", *files],
        cwd=HERE.parents[1],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
