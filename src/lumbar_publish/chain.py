"""The sealed chain on a sample study, in a fresh process that sees nothing of ours but the sealed folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lumbar.errors import ManifestError
from lumbar_publish.submission import check_submission

_TIMEOUT_S = 900
# Folders that hold any package of ours leave the path (an editable install puts them there), then only the sealed
# code comes on: what forgot to be sealed fails here and not on Kaggle.
ONLY_SEALED = """\
import os, sys
sys.path[:] = [p for p in sys.path if not any(os.path.isdir(os.path.join(p or ".", n)) for n in
               ("lumbar", "lumbar_train", "lumbar_phantom", "lumbar_publish"))]
"""
_RUN = """\
sys.path.insert(0, sys.argv.pop(1))
from lumbar.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run_chain(sealed: Path, sample: Path, chain: str = "main") -> None:
    """Predict one study of ``sample`` (a competition folder, test split) with the sealed code and weights.

    Raises:
        ManifestError: the chain failed or left no valid submission; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar-chain-") as scratch:
        out = Path(scratch) / "submission.csv"
        arguments = ["predict", "--data", str(sample.resolve()), "--weights", str(sealed.resolve()), "--out", str(out)]
        arguments += ["--split", "test", "--chain", chain, "--studies", "1"]
        command = [sys.executable, "-I", "-c", ONLY_SEALED + _RUN, str(sealed.resolve() / "code"), *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment.setdefault("NUMBA_CACHE_DIR", scratch)
        try:
            done = subprocess.run(
                command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ManifestError(f"{sealed}: the sealed chain ran over {_TIMEOUT_S} s on one study") from None
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        if done.returncode:
            raise ManifestError(f"{sealed}: the sealed chain exited {done.returncode} on {sample}: {lines[-1]}")
        check_submission(out)
