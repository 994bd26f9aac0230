"""The shipped weights do what the README says: on synthetic studies never trained on, and on the real one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.bundle.manifest import read_manifest, verify
from lumbar.bundle.weights import load_networks
from lumbar.labels import SIDES
from lumbar.metric import score
from lumbar.run import predict
from lumbar.stages.localise import localise
from real_study import REAL, cropped, errors_mm, magnified, marks_mm, read_real, shortened, turned, zoomed

ROOT = Path(__file__).resolve().parents[1]
NEEDS_REAL = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: the real study is not here")
MISSING_MM = 50.0


def test_the_lock_file_names_the_weights_that_lie_here(demo_bundle):
    manifest = verify(demo_bundle)
    assert manifest.recipe == "demo"
    assert sum(entry.bytes for entry in manifest.weights) <= 10_000_000
    assert all(entry.fold == -1 for entry in manifest.weights)


@pytest.mark.slow
def test_unseen_phantoms_are_localised_and_beat_the_prior(demo_bundle, tmp_path):
    root = tmp_path / "cohort"
    command = [sys.executable, "-m", "lumbar_phantom", "--out", str(root), "--studies", "6", "--seed", "987"]
    subprocess.run([*command, "--split", "test", "--pitfalls", "none"], check=True, capture_output=True, timeout=1500)
    frame, record = predict(root, demo_bundle, out=tmp_path / "s.csv")
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
    prior = read_manifest(demo_bundle).prior
    constant = frame.copy()
    columns = [str(row).split("_", 1)[1] for row in frame["row_id"]]
    constant.loc[:, ["normal_mild", "moderate", "severe"]] = [prior[column] for column in columns]
    assert score(solution, frame).total < score(solution, constant).total


@pytest.fixture(scope="module")
def networks(demo_bundle):
    return load_networks(demo_bundle, verify(demo_bundle), torch.device("cpu"))


@pytest.mark.real
@NEEDS_REAL
def test_the_real_study_gives_every_row(demo_bundle, tmp_path):
    frame, record = predict(REAL, demo_bundle, out=tmp_path / "s.csv")
    assert len(frame) == 25
    np.testing.assert_allclose(frame[["normal_mild", "moderate", "severe"]].sum(axis=1), 1.0, atol=1e-9)
    assert record["studies"][0]["status"] == "predicted"


CASES = {
    "as it is": lambda study: (study, marks_mm(study)),
    "turned left": lambda study: turned(study, 15.0),
    "turned right": lambda study: turned(study, -15.0),
    "magnified": lambda study: magnified(study, 1.35),
    "minified": lambda study: magnified(study, 0.75),
    "larger": lambda study: zoomed(study, 1.35),
    "smaller": lambda study: zoomed(study, 0.75),
    "without its first slices": lambda study: shortened(study, 2, 0),
    "without its last slices": lambda study: shortened(study, 0, 2),
}


@pytest.mark.real
@NEEDS_REAL
@pytest.mark.parametrize("case", CASES)
def test_the_real_study_is_localised_as_marked_by_hand(networks, case):
    study, marks = CASES[case](read_real())
    localisation = localise(study, networks)
    factor = {"larger": 1.35, "smaller": 0.75}.get(case, 1.0)  # errors are told in the patient's own mm
    errors = {key: error / factor for key, error in errors_mm(localisation, marks, None).items()}
    assert len(errors) == 15  # five levels on T2, T1 and STIR
    assert max(errors.values()) <= 4.0, errors
    assert np.median(list(errors.values())) <= 3.5
    for side in SIDES:
        foramina = {key: error / factor for key, error in errors_mm(localisation, marks, side).items()}
        assert len(foramina) == 15
        assert max(foramina.values()) <= 6.0, foramina
        for point in localisation.sagittal_points:
            if point.side == side:
                canal = localisation.levels_mm[point.level][0]
                assert (point.xyz_mm[0] > canal) == (side == "left")


@pytest.mark.real
@NEEDS_REAL
@pytest.mark.parametrize("below_mm", [3.0, 15.0, 30.0])
def test_without_its_sacrum_the_real_study_is_right_or_doubted(networks, below_mm):
    study, marks = cropped(read_real(), below_mm)
    localisation = localise(study, networks)
    is_right = max(errors_mm(localisation, marks, None).values()) <= 10.0
    assert is_right or any("sacrum" in line or "read alone" in line for line in localisation.problems)
