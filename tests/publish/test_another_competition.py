"""A second competition by the same code: from data to a scored submission, as docs/another-competition.md says it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import tiny_competition
from knee_studies import BROKEN, FINDINGS, write_knees
from lumbar.bundle.manifest import read_manifest, write_manifest
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import ManifestError
from lumbar_publish import cli
from lumbar_publish.names import Layout
from lumbar_publish.sealing.completeness import completeness_errors
from lumbar_publish.sealing.model_card import model_metadata, variation_metadata
from lumbar_publish.sealing.seal import seal, verify_against_lock
from publish.kaggle_server import USER, KaggleServer

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "another_competition"
# `build_dataset.py` with short pauses between the client's tries
BUILD = """
import sys
from pathlib import Path
from lumbar_publish.cli import main
from lumbar_publish.kaggle import client
from lumbar_publish.names import Layout
client._FIRST_PAUSE_S, client._LONGEST_PAUSE_S = 0.05, 0.2
sys.exit(main(Layout(Path(sys.argv.pop(1))), None))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the example's two modules where the document puts them."""
    place = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "kernel", place / "kernel", ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("competitions", "chains"):
        shutil.copy(EXAMPLE / room / "knee_tears.py", place / "kernel" / "lumbar" / room)
    return place


def run(root: Path, *command: str) -> str:
    """What a command of Python prints that runs the repository's own kernel."""
    path = os.pathsep.join([str(root / "kernel"), str(REPOSITORY / "src"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def tiny_layout(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """The tiny repository with a lock file of another competition."""
    monkeypatch.setitem(sys.modules, "lumbar.competitions.tiny", tiny_competition)
    data = json.loads(layout.lock.read_text())
    write_manifest(layout.lock, data | {"competition": "tiny", "prior": tiny_competition.PRIOR})
    return layout


def add_module(layout: Layout) -> None:
    place = layout.kernel / "competitions" / "tiny.py"
    place.parent.mkdir(exist_ok=True)
    shutil.copy(tiny_competition.__file__, place)


def test_a_competition_whose_module_would_not_ship_is_not_sealed(tiny_layout: Layout) -> None:
    with pytest.raises(ManifestError, match=r"competitions/tiny\.py: no such file, expected the module of competition"):
        seal(tiny_layout)
    assert not tiny_layout.sealed.exists()


def test_notebook_and_metadata_are_of_the_sealed_competition(tiny_layout: Layout) -> None:
    add_module(tiny_layout)
    sealed = seal(tiny_layout)
    assert sealed.competition is tiny_competition.COMPETITION
    metadata = json.loads(tiny_layout.kernel_metadata.read_text())
    assert metadata["competition_sources"] == ["two-findings"]
    source = "".join("".join(cell["source"]) for cell in json.loads(tiny_layout.notebook.read_text())["cells"])
    assert 'COMPETITION = "two-findings"' in source
    assert '"--time-limit", "2h"' in source
    assert "Two findings: offline submission" in source
    assert LUMBAR_SPINE.slug not in source
    assert verify_against_lock(tiny_layout, sealed.folder) == sealed.manifest_hash


def test_the_card_of_a_model_is_of_the_sealed_competition(tiny_layout: Layout) -> None:
    add_module(tiny_layout)
    sealed = seal(tiny_layout)
    manifest = read_manifest(sealed.folder)
    card = model_metadata(sealed.dataset, manifest)
    usage = variation_metadata(sealed.dataset, manifest)["usage"]
    assert card["description"].startswith("# Two findings\n\nGives probabilities of a study (Fracture, Effusion), for")
    assert "/kaggle/input/two-findings" in usage
    assert "layout (`hidden/dicom/`)" in usage
    assert not any("umbar spine" in text for text in (card["description"], card["subtitle"], usage))


def test_another_competitions_run_needs_weights_and_folds_of_one_kind(tiny_layout: Layout) -> None:
    data = json.loads(tiny_layout.lock.read_text())
    assert completeness_errors(data) == []
    assert completeness_errors(data | {"weights": []}) == [
        "no weights, expected those that the competition's module loads"
    ]
    other = data["weights"][0] | {"file": "weights/other.safetensors", "config": {"size": 3}}
    (reason,) = completeness_errors(data | {"weights": [data["weights"][0], other]})
    assert "differ in config" in reason


def test_a_phantom_is_no_sample_of_another_competition(tiny_layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    add_module(tiny_layout)
    assert cli.main(tiny_layout, lambda folder: None, []) == 1
    assert "error: --sample: found none, expected a folder of two-findings" in capsys.readouterr().err
    assert not tiny_layout.sealed.exists()


@pytest.mark.slow
def test_from_data_to_a_scored_submission(root: Path, kaggle: KaggleServer, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "rehearsal"
    truth = write_knees(data)
    run(root, str(EXAMPLE / "train.py"), str(data), str(tmp_path / "run"))
    printed = run(root, "-c", BUILD, str(root), "--run", str(tmp_path / "run"), "--sample", str(data))
    assert "at most 6 hours" in printed
    manifest = json.loads((root / "weights_manifest.json").read_text())
    assert manifest["competition"] == "knee_tears"
    assert "competitions/knee_tears.py" in manifest["code_files"]
    assert json.loads((root / "kernel" / "kernel-metadata.json").read_text())["competition_sources"] == [
        "knee-mr-tears"
    ]

    dry_run = ["-m", "lumbar_publish.rehearsal.dry_run", "--root", str(root), "--keep-seal", "--out", str(out)]
    printed = run(root, *dry_run, "--data", str(data))
    assert f"{len(truth)} of {len(truth)}, valid; 1 of {len(truth)} studies left at the prior" in printed
    assert "of 6 hours for 300 studies" in printed
    score = re.search(r"^score +(\d\.\d{4}) \(acl tear \d\.\d{4}, meniscus tear \d\.\d{4}\)$", printed, re.MULTILINE)
    working = out / "kaggle" / "working"
    submission = pd.read_csv(working / "submission.csv").set_index("study_id")
    assert list(submission.columns) == list(FINDINGS)
    assert list(submission.index) == list(truth)
    assert submission.loc[BROKEN].tolist() == [0.5, 0.5]
    for study_id, grades in truth.items():
        if study_id != BROKEN:
            assert (submission.loc[study_id] > 0.5).tolist() == list(map(bool, grades))
    assert score is not None
    assert float(score[1]) < 0.693  # what 0.5 everywhere scores
    report = (working / "report.html").read_text()
    assert "Knee run report" in report
    assert "levels on sagittal" not in report

    files = {name: (working / name).read_bytes() for name in ("submission.csv", "record.json")}
    kaggle.output = lambda _: files
    printed = run(root, "-c", BUILD, str(root), "--publish", "-m", "first knees", "--sample", str(data))
    assert "public score 0.355" in printed
    named = {request.get("competitionName") for method, request in kaggle.requests if "Submission" in method}
    assert named - {None} == {"knee-mr-tears"}
    pushed = kaggle.kernels[f"{USER}/lumbar-kit-submission"].versions[-1]
    assert "knee-mr-tears" in pushed["text"]

    metric = ["-m", "lumbar", "score", "--competition", "knee_tears", "--submission", str(working / "submission.csv")]
    printed = run(root, *metric, "--solution", str(data / "test_labels.csv"))
    assert printed.startswith("total        ")
    assert all(len(line.split()) == 2 for line in printed.splitlines()), "a name and its value"
    assert float(printed.split()[1]) == pytest.approx(float(score[1]), abs=1e-4)
