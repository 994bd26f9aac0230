"""The main job with the real kernel, the shipped weights and phantoms: seal, rehearse, judge."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lumbar_publish.names import Layout
from lumbar_publish.rehearsal import dry_run

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sealing needs of this repository, in a place where it may write."""
    place = tmp_path_factory.mktemp("repository")
    shutil.copytree(REPOSITORY / "kernel", place / "kernel", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "weights", place / "weights")
    shutil.copy(REPOSITORY / "weights_manifest.json", place)
    return place


@pytest.mark.slow
def test_dry_run_of_two_studies(root: Path, phantom_cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "dist" / "dry-run"
    code = dry_run.main(["--root", str(root), "--data", str(phantom_cohort), "--out", str(out), "--kaggle-like"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "50 of 50, valid; 0 of 2 studies left at the prior" in captured.out
    assert re.search(r"^score +\d+\.\d{4} \(spinal", captured.out, re.MULTILINE)
    record = json.loads((out / "kaggle" / "working" / "record.json").read_text())
    assert [study["status"] for study in record["studies"]] == ["predicted", "predicted"]
    assert all(study["sagittal_points"] for study in record["studies"])
    assert "<html" in (out / "kaggle" / "working" / "report.html").read_text().lower()
    staged = sorted(os.listdir(Layout(root).sealed))
    assert staged == ["code", "dataset-metadata.json", "weights", "weights_manifest.json"]


@pytest.mark.slow
def test_weights_that_lack_a_stage_are_sealed_by_force_after_each_network_was_tried(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "repository"
    shutil.copytree(root, place, ignore=shutil.ignore_patterns("dist"))
    lock = place / "weights_manifest.json"
    data = json.loads(lock.read_text())
    data["weights"] = [entry for entry in data["weights"] if entry["stage"] == "aggregator"]
    data["weights"][0]["probe"]["expected"][0] += 9.0
    lock.write_text(json.dumps(data))
    script = (
        "import sys; from pathlib import Path; from lumbar_publish.cli import main; from lumbar_publish.names import "
        f"Layout; sys.exit(main(Layout(Path({str(place)!r})), None, sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def seal(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = seal()
    assert refused.returncode == 1
    assert "no weights for sagittal_xy" in refused.stderr
    broken = seal("--force")
    assert broken.returncode == 1
    assert "probe gave" in broken.stderr
    data["weights"][0]["probe"]["expected"][0] -= 9.0
    lock.write_text(json.dumps(data))
    assert seal("--force").returncode == 0
