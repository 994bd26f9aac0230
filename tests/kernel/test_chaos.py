"""The whole chain, with small untrained networks on tiny DICOM studies, while things go wrong around it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lumbar.chains.main
from kernel_dicom import SERIES, SIZE, write_dicom_cohort
from kernel_untrained import write_untrained_bundle
from lumbar.errors import ManifestError
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, row_ids
from lumbar.output.submission import validate
from lumbar.run import predict
from slice_writer import write_slice

pytestmark = pytest.mark.usefixtures("unmeasured_children")

HERE = Path(__file__).resolve().parent
STUDIES = (11, 12, 13, 14)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_untrained_bundle(tmp_path_factory.mktemp("untrained") / "bundle")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_dicom_cohort(tmp_path_factory.mktemp("cohort"), STUDIES)


@pytest.fixture(scope="module")
def calm(cohort, bundle, tmp_path_factory):
    """What an undisturbed run gives."""
    return predict(cohort, bundle, tmp_path_factory.mktemp("calm") / "s.csv", processes=False)


@pytest.fixture
def root(cohort, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(cohort, tmp_path / "data")


def series(root, study_id, description):
    return root / "test_images" / str(study_id) / str(study_id * 10 + SERIES[description])


def run_and_check(root, bundle, tmp_path, **options):
    """Predict in this process, which has its torch already; the file is whole and valid whatever happened.

    Returns rows by study and the record's studies.
    """
    out = tmp_path / "submission.csv"
    options = {"processes": False, **options}
    frame, record = predict(root, bundle, out, report=tmp_path / "report.html", **options)
    expected = [name for study_id in STUDIES for name in row_ids(study_id)]
    assert validate(out, expected)["row_id"].tolist() == frame["row_id"].tolist()
    assert "Research use only" in (tmp_path / "report.html").read_text()
    rows = frame.iloc[:, 1:].to_numpy(dtype=float).reshape(len(STUDIES), 25, 3)
    return dict(zip(STUDIES, rows, strict=True)), {study["study_id"]: study for study in record["studies"]}


def calm_rows(calm, study_id):
    frame = calm[0]
    return frame[frame["row_id"].isin(row_ids(study_id))].iloc[:, 1:].to_numpy(dtype=float)


def assert_others_are_calm(rows, calm, *damaged):
    for study_id in STUDIES:
        if study_id not in damaged:
            np.testing.assert_allclose(rows[study_id], calm_rows(calm, study_id), atol=1e-6)


def is_prior(rows):
    return bool((np.abs(rows - [0.6, 0.3, 0.1]) < 1e-9).all())


def test_an_undisturbed_run_predicts_every_study_with_points_and_record(calm):
    _, record = calm
    assert [study["status"] for study in record["studies"]] == ["predicted"] * 4
    assert {"load", "read", "localise", "classify", "aggregate"} <= set(record["seconds"])
    point = record["studies"][0]["sagittal_points"][0]
    assert list(point) == [
        "series_id", "description", "level", "side", "instance_number", "x_px", "y_px", "xyz_mm", "confidence",
    ]  # fmt: skip
    json.dumps(record, allow_nan=False)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(cohort, bundle, calm, tmp_path):
    rows, studies = run_and_check(cohort, bundle, tmp_path, workers=2, processes=True)
    assert_others_are_calm(rows, calm)
    assert all(study["status"] == "predicted" for study in studies.values())


def test_an_empty_study_folder(root, bundle, calm, tmp_path):
    shutil.rmtree(root / "test_images" / "12")
    (root / "test_images" / "12").mkdir()
    rows, studies = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm, 12)
    assert is_prior(rows[12])
    assert studies[12]["status"] == "prior"
    assert studies[12]["problems"][-1] == "study 12: found no readable series, expected at least one"


def test_a_truncated_slice_and_a_text_file_cost_themselves_only(root, bundle, calm, tmp_path):
    cut = series(root, 13, SAGITTAL_T2) / "6.dcm"
    cut.write_bytes(cut.read_bytes()[:-1000])
    text = series(root, 13, AXIAL_T2) / "9.dcm"
    text.write_text("this is no image\n")
    rows, studies = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm, 13)
    assert studies[13]["status"] == "predicted"
    assert any("6.dcm" in line for line in studies[13]["problems"])
    assert any("9.dcm" in line for line in studies[13]["problems"])


def test_a_series_of_another_body_part(root, bundle, calm, tmp_path):
    folder = series(root, 11, SAGITTAL_T1)
    shutil.rmtree(folder)
    folder.mkdir()
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    for number in range(1, 10):  # coronal slices of a bright ball, far away
        pixels = 2000.0 * (np.hypot(yy, xx) < 20) + rng.uniform(0, 50, (SIZE, SIZE))
        write_slice(
            folder / f"{number}.dcm", pixels, number=number, origin=(900, 5.0 * number, 700),
            orientation=(1, 0, 0, 0, 0, -1), spacing_mm=3.0,
        )  # fmt: skip
    rows, studies = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm, 11)
    assert studies[11]["status"] == "predicted"
    assert any("coronal" in line for line in studies[11]["problems"])


def test_all_axial_series_missing(root, bundle, tmp_path):
    for study_id in STUDIES:
        shutil.rmtree(series(root, study_id, AXIAL_T2))
    rows, studies = run_and_check(root, bundle, tmp_path)
    for study_id in STUDIES:
        assert studies[study_id]["status"] == "predicted"
        assert studies[study_id]["axial_levels"] == []
        assert is_prior(rows[study_id][15:])  # no model saw the subarticular columns


def test_all_sagittal_series_missing(root, bundle, calm, tmp_path):
    for description in (SAGITTAL_T1, SAGITTAL_T2):
        shutil.rmtree(series(root, 14, description))
    rows, studies = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm, 14)
    assert is_prior(rows[14])
    assert studies[14]["problems"]


def test_one_study_raising_in_the_networks(root, bundle, calm, tmp_path, monkeypatch):
    real = lumbar.chains.main.classify

    def breaking(study, *arguments, **options):
        if study.study_id == 12:
            raise RuntimeError("CUDA out of memory")
        return real(study, *arguments, **options)

    monkeypatch.setattr(lumbar.chains.main, "classify", breaking)
    rows, studies = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm, 12)
    assert is_prior(rows[12])
    assert studies[12]["problems"][-1] == "study 12: RuntimeError: CUDA out of memory"


def test_the_clock_jumping_to_the_deadline(root, bundle, calm, tmp_path, monkeypatch):
    now = [0.0]
    real = lumbar.chains.main.localise

    def jumping(study, *arguments, **options):
        result = real(study, *arguments, **options)
        if study.study_id == 13:
            now[0] = 1e9
        return result

    monkeypatch.setattr(lumbar.chains.main, "localise", jumping)
    rows, studies = run_and_check(root, bundle, tmp_path, clock=lambda: now[0])
    assert_others_are_calm(rows, calm, 13, 14)
    assert is_prior(rows[14])
    assert studies[14]["problems"] == ["study 14: time limit reached before it was predicted"]


def test_a_table_that_names_series_that_are_not_there(root, bundle, calm, tmp_path):
    with open(root / "test_series_descriptions.csv", "a") as table:
        table.write("12,129,Axial T2\n")
    rows, studies = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm, 12)
    assert studies[12]["status"] == "predicted"
    assert any("129" in line for line in studies[12]["problems"])


@pytest.mark.slow
def test_the_process_killed_and_run_again(root, bundle, calm, tmp_path):
    out = tmp_path / "submission.csv"
    command = [sys.executable, "-m", "lumbar", "predict", "--data", root, "--weights", bundle, "--out", out]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    deadline = time.monotonic() + 600  # a busy machine takes minutes to import torch
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not out.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    validate(out, [name for study_id in STUDIES for name in row_ids(study_id)])
    rows, _ = run_and_check(root, bundle, tmp_path)
    assert_others_are_calm(rows, calm)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_network_that_answers_differently_is_refused(cohort, bundle, tmp_path):
    """A probe sees what no hash can: code or a library that computes something else."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    path = copy / "weights_manifest.json"
    data = json.loads(path.read_text())
    data["weights"][2]["probe"]["expected"][0] += 5.0
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=r"axial_xy\.full\.safetensors: probe gave \S+, expected \S+: code or lib"):
        predict(cohort, copy, tmp_path / "s.csv", processes=False)
    assert not (tmp_path / "s.csv").exists()


def test_a_config_with_an_unknown_key_is_refused(cohort, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    path = copy / "weights_manifest.json"
    data = json.loads(path.read_text())
    data["weights"][0]["config"]["depth"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=r"HeatmapConfig: unknown keys \['depth'\]"):
        predict(cohort, copy, tmp_path / "s.csv", processes=False)
