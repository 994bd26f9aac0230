"""The shipped weights do what the README says: on synthetic studies never trained on, and on the real one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar.labels import LEVELS, SAGITTAL_T2, SIDES
from lumbar.manifest import read_manifest, verify
from lumbar.metric import score
from lumbar.run import predict
from lumbar.study import read_descriptions, read_study

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real" / "lumbar_cc0"
MARKS = json.loads((Path(__file__).parent / "fixtures" / "real_marks.json").read_text())
MISSING_MM = 50.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Lock file and demo weights as they will lie in the sealed folder."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "weights").mkdir()
    shutil.copy(ROOT / "weights_manifest.json", folder)
    for path in (ROOT / "weights" / "demo").glob("*.safetensors"):
        shutil.copy(path, folder / "weights")
    return folder


def test_the_lock_file_names_the_weights_that_lie_here(bundle):
    manifest = verify(bundle)
    assert manifest.recipe == "demo"
    assert sum(entry.bytes for entry in manifest.weights) <= 10_000_000
    assert all(entry.fold == -1 for entry in manifest.weights)


@pytest.mark.slow
def test_unseen_phantoms_are_localised_and_beat_the_prior(bundle, tmp_path):
    root = tmp_path / "cohort"
    command = [sys.executable, "-m", "lumbar_phantom", "--out", str(root), "--studies", "6", "--seed", "987"]
    subprocess.run([*command, "--split", "test", "--pitfalls", "none"], check=True, capture_output=True, timeout=600)
    frame, record = predict(root, bundle, out=tmp_path / "s.csv")
    assert [study["status"] for study in record["studies"]] == ["predicted"] * 6
    truth = pd.read_parquet(root / "truth.parquet")
    truth = truth[truth["condition"] == "spinal_canal_stenosis"].drop_duplicates(["study_id", "level"])
    errors = []
    for study in record["studies"]:
        points = {p["level"]: p["xyz_mm"] for p in study["sagittal_points"] if p["side"] is None}
        for row in truth[truth["study_id"] == study["study_id"]].to_dict("records"):
            if row["level"] in points:
                xyz = np.array([row["x_mm"], row["y_mm"], row["z_mm"]])
                errors.append(float(np.linalg.norm(np.array(points[row["level"]]) - xyz)))
            else:
                errors.append(MISSING_MM)
    assert np.median(errors) <= 4.0
    solution = pd.read_csv(root / "solution.csv")
    prior = read_manifest(bundle).prior
    constant = frame.copy()
    columns = [str(row).split("_", 1)[1] for row in frame["row_id"]]
    constant.loc[:, ["normal_mild", "moderate", "severe"]] = [prior[column] for column in columns]
    assert score(solution, frame).total < score(solution, constant).total


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: the real study is not here")
def test_the_real_study_is_localised_as_marked_by_hand(bundle, tmp_path):
    frame, record = predict(REAL, bundle, out=tmp_path / "s.csv")
    assert len(frame) == 25
    np.testing.assert_allclose(frame[["normal_mild", "moderate", "severe"]].sum(axis=1), 1.0, atol=1e-9)
    study = read_study(REAL, "test", MARKS["study_id"], read_descriptions(REAL, "test"))
    stacks = {stack.series_id: stack for group in study.series.values() for stack in group}
    points = record["studies"][0]["sagittal_points"]
    for level in LEVELS:
        marked = MARKS["canal"][level]
        stack = stacks[MARKS["canal"]["series_id"]]
        index = stack.instance_numbers.index(marked["instance_number"])
        wanted = stack.to_patient(index, marked["y_px"], marked["x_px"])
        for point in points:
            if point["level"] == level and point["side"] is None:
                in_plane = np.array(point["xyz_mm"])[1:] - wanted[1:]
                assert np.linalg.norm(in_plane) <= 8.0, (level, point["series_id"], in_plane)  # the right disc
    for side in SIDES:
        places = [p["xyz_mm"][0] for p in points if p["side"] == side]
        canal = [p["xyz_mm"][0] for p in points if p["side"] is None]
        assert places
        assert (np.median(places) > np.median(canal)) == (side == "left")
    assert study.series[SAGITTAL_T2]
