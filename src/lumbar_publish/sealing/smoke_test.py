"""The sealed chain on a sample study, in a fresh process that sees nothing of ours but the sealed folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lumbar.bundle.manifest import read_manifest
from lumbar.errors import ManifestError
from lumbar_publish.rehearsal.submission import check_submission
from lumbar_publish.sealing.members import check_record, external_entries

_TIMEOUT_S = 1800  # on a busy machine, the first time, compiling takes minutes of it
# Folders that hold any package of ours leave the path (an editable install puts them there), then only the sealed
# code comes on: what forgot to be sealed fails here and not on Kaggle.
ONLY_SEALED = """\
import os, sys
sys.path[:] = [p for p in sys.path if not any(os.path.isdir(os.path.join(p or ".", n)) for n in
               ("lumbar", "lumbar_train", "lumbar_phantom", "lumbar_publish"))]
"""
_START = """\
sys.path.insert(0, sys.argv.pop(1))
"""
_PREDICT = """\
from lumbar.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
_NETWORKS = """\
from lumbar.errors import LumbarError
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.probes import check_probe
from lumbar.bundle.weights import load_network
from lumbar.chains.registry import own_chain
from lumbar.competitions.registry import DEFAULT
try:
    manifest = read_manifest(sys.argv[1])
    if manifest.competition_name != DEFAULT:
        own_chain(manifest.competition_name).load(manifest, "cpu")
        sys.exit(0)
    networks = [entry for entry in manifest.weights if entry.model != "external"]
    for entry in networks:
        check_probe(load_network(manifest.path(entry), entry), entry.probe, entry.file)
    if len(networks) < len(manifest.weights):
        from lumbar.bundle.external_members import load_members
        load_members(manifest, "cpu")
except LumbarError as error:
    sys.exit(f"error: {error}")
"""


def run_chain(sealed: Path, sample: Path, chain: str = "main") -> None:
    """Predict one study of ``sample`` (a competition folder, test split) with the sealed code and weights.

    Raises:
        ManifestError: the chain failed, or an external member on the study; the message ends with its last line.
        CohortError: it left no valid submission.
    """
    manifest = read_manifest(sealed)
    with tempfile.TemporaryDirectory(prefix="lumbar-chain-") as scratch:
        out, record = Path(scratch) / "submission.csv", Path(scratch) / "record.json"
        arguments = ["predict", "--data", str(sample.resolve()), "--weights", str(sealed.resolve()), "--out", str(out)]
        arguments += ["--split", "test", "--chain", chain, "--studies", "1"]
        arguments += ["--record", str(record)]
        run_sealed(_PREDICT, sealed, arguments, Path(scratch))
        check_submission(out, competition=manifest.competition)
        if external_entries(manifest.data):
            check_record(record)


def run_networks(sealed: Path) -> None:
    """Rebuild every network of the sealed folder by itself and check its probe: all that a partial bundle can show.

    Raises:
        ManifestError: a config, shape or answer that is not what the manifest says.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar-chain-") as scratch:
        run_sealed(_NETWORKS, sealed, [str(sealed.resolve())], Path(scratch))


def run_sealed(source: str, sealed: Path, arguments: list[str], scratch: Path) -> None:
    """Run a program in a fresh process that sees the sealed code alone.

    Args:
        source: the program's text.
        sealed: the bundle with its code.
        arguments: what the program finds in ``sys.argv``.
        scratch: where it runs, and what it compiles goes.

    Raises:
        ManifestError: it failed; the message ends with its last line.
    """
    code = str(sealed.resolve() / "code")
    # -B: no bytecode beside the sealed code, nor from its workers, which inherit the flag.
    command = [sys.executable, "-I", "-B", "-c", ONLY_SEALED + _START + source, code, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment.setdefault("NUMBA_CACHE_DIR", str(scratch))
    try:
        done = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ManifestError(f"{sealed}: the sealed chain ran over {_TIMEOUT_S} s on one study") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ManifestError(f"the sealed chain exited {done.returncode}: {lines[-1].removeprefix('error: ')}")
