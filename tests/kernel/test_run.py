import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, probs_of, refuse, write_cohort
from lumbar.errors import CohortError, LumbarError, ManifestError
from lumbar.labels import COLUMNS, row_ids
from lumbar.output.submission import normalise, validate
from lumbar.run import predict as predict_in_processes

PRIOR = [0.6, 0.3, 0.1]
HERE = Path(__file__).resolve().parent


def predict(*arguments, **options):
    """In threads, which start at once: what processes add is in test_workers.py."""
    return predict_in_processes(*arguments, **{"processes": False, **options})


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def status(record):
    return {study["study_id"]: study["status"] for study in record["studies"]}


def problems(record, study_id):
    return next(study["problems"] for study in record["studies"] if study["study_id"] == study_id)


def rows(frame, study_id):
    chosen = frame[frame["row_id"].isin(row_ids(study_id))]
    assert chosen["row_id"].tolist() == row_ids(study_id)
    return chosen.iloc[:, 1:].to_numpy(dtype=float)


def assert_predicted(frame, *study_ids):
    for study_id in study_ids:
        np.testing.assert_allclose(rows(frame, study_id), normalise(probs_of(study_id)), atol=1e-8)


def assert_prior(frame, *study_ids):
    for study_id in study_ids:
        assert (rows(frame, study_id) == PRIOR).all()


def test_every_study_replaces_its_prior(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {30: (), 10: ("noted",), 20: ()})
    out = tmp_path / "submission.csv"
    frame, record = predict(root, bundle, out, chain=FAKE, record=tmp_path / "record.json")
    validate(out, [*row_ids(10), *row_ids(20), *row_ids(30)])
    assert frame["row_id"].tolist() == [*row_ids(30), *row_ids(10), *row_ids(20)]  # the sample's order
    assert_predicted(frame, 10, 20, 30)
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert status(record) == {30: "predicted", 10: "predicted", 20: "predicted"}
    assert problems(record, 10) == ["study 10: 3.dcm left out"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bundle", "data", "record.json", "submission.csv", "submission.csv.journal"]


def test_the_record_has_the_keys_of_the_contract(tmp_path, bundle):
    _, record = predict(write_cohort(tmp_path / "data", {1: ()}), bundle, chain=FAKE)
    assert list(record) == ["manifest_hash", "versions", "devices", "seconds", "studies"]
    assert list(record["studies"][0]) == [
        "study_id", "status", "problems", "seconds", "sagittal_points", "axial_levels", "inputs",
    ]  # fmt: skip
    assert record["devices"] == ["cpu"]
    assert record["seconds"]["localise"] == 0.25
    assert record["versions"]["numpy"] == np.__version__
    assert record["studies"][0]["sagittal_points"][0]["level"] == "l1_l2"
    json.dumps(record, allow_nan=False)


def test_one_failing_study_keeps_its_prior_and_the_others_go_on(tmp_path, bundle, caplog):
    traits = {
        1: (), 2: ("raise-read",), 3: ("raise-predict",), 4: ("nan",), 5: ("empty",), 6: ("undrawable",), 7: (),
    }  # fmt: skip
    root = write_cohort(tmp_path / "data", traits)
    with caplog.at_level(logging.WARNING, "lumbar"):
        frame, record = predict(root, bundle, tmp_path / "s.csv", chain=FAKE, report=tmp_path / "r.html")
    assert status(record) == {k: "prior" if k in (2, 3, 4, 5) else "predicted" for k in traits}
    assert_predicted(frame, 1, 6, 7)
    assert_prior(frame, 2, 3, 4, 5)
    assert problems(record, 2) == ["study 2: OSError: [Errno 5] Input/output error: '7.dcm'"]
    assert problems(record, 3) == ["study 3: RuntimeError: index 5 is out of bounds for dimension 0"]
    assert problems(record, 4) == [
        "study 4: probabilities: spinal_canal_stenosis_l4_l5 moderate is nan, expected finite"
    ]
    assert problems(record, 5) == ["study 5: found no readable series, expected at least one"]
    assert problems(record, 6) == ["study 6: no pictures (ValueError: no picture)"]
    lines = [r.getMessage() for r in caplog.records]
    assert "study 5: found no readable series, expected at least one; its prior stays" in lines
    assert len(lines) == 4
    assert not any("\n" in line for line in lines)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_study_whose_thread_ends_keeps_its_prior(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: (), 2: ("exit",), 3: (), 4: ()})
    frame, record = predict(root, bundle, chain=FAKE)
    assert_predicted(frame, 1, 3, 4)
    assert_prior(frame, 2)
    assert problems(record, 2) == ["study 2: worker lost while predicting (its thread ended)"]


def test_two_workers_give_what_one_gives(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {k: ("raise-predict",) if k == 4 else () for k in range(1, 9)})
    one, record_one = predict(root, bundle, tmp_path / "one.csv", chain=FAKE)
    two, record_two = predict(root, bundle, tmp_path / "two.csv", chain=FAKE, workers=2)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert one.equals(two)
    assert status(record_one) == status(record_two)
    assert record_two["devices"] == ["cpu", "cpu"]


class Jumping:
    """A clock that jumps to the deadline after some calls."""

    def __init__(self, after):
        self.calls, self.after = 0, after

    def __call__(self):
        self.calls += 1
        return 0.0 if self.calls < self.after else 1e9


@pytest.mark.parametrize("after", [2, 4, 12, 40])
def test_a_clock_that_jumps_to_the_deadline_leaves_a_valid_file(tmp_path, bundle, after):
    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 31)})
    frame, record = predict(
        root, bundle, tmp_path / "s.csv", chain=FAKE, clock=Jumping(after), report=tmp_path / "r.html"
    )
    validate(tmp_path / "s.csv", [row for k in range(1, 31) for row in row_ids(k)])
    done = [k for k, value in status(record).items() if value == "predicted"]
    assert len(done) < 30
    assert_predicted(frame, *done)
    assert_prior(frame, *(set(range(1, 31)) - set(done)))
    assert problems(record, 30) == ["study 30: time limit reached before it was predicted"]
    assert (tmp_path / "r.html").stat().st_size > 0


def test_short_time_lowers_the_effort_and_says_so(tmp_path, bundle):
    seen, now = [], [0.0]

    def slow_predict(study, networks, prior, effort):
        seen.append(effort)
        now[0] += 20.0 if effort == 0 else 2.0
        return FAKE.predict(study, networks, prior, effort)

    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 21)})
    chain = replace(FAKE, predict=slow_predict)
    _, record = predict(root, bundle, chain=chain, time_limit="250s", clock=lambda: now[0])
    assert max(seen) > 0
    assert set(status(record).values()) == {"predicted"}
    assert now[0] <= 250.0
    notes = [line for study in record["studies"] for line in study["problems"]]
    assert any("no test-time augmentation, for lack of time" in line for line in notes)


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path, bundle, monkeypatch, caplog):
    real, calls = os.replace, []

    def sometimes(source, target):
        calls.append(target)
        if len(calls) in (3, 4):
            raise OSError(28, "No space left on device")
        real(source, target)

    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 6)})
    monkeypatch.setattr("os.replace", sometimes)
    frame, _ = predict(root, bundle, tmp_path / "s.csv", chain=FAKE)
    assert_predicted(validate(tmp_path / "s.csv", frame["row_id"].tolist()), *range(1, 6))
    assert "s.csv: cannot be written (No space left on device)" in caplog.text


# ---- refusals before anything is written ---------------------------------------------------------------------------


def broken_load(manifest, device):
    raise RuntimeError("no kernel image is available\nfor execution on the device")


def test_a_failed_probe_ends_the_run_before_any_row(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: ()})
    for workers in (None, 2):
        with pytest.raises(ManifestError, match=r"a\.safetensors: probe gave 1\.0, expected 2\.0"):
            predict(root, bundle, tmp_path / "s.csv", chain=replace(FAKE, load=refuse), workers=workers)
    with pytest.raises(LumbarError, match=r"^RuntimeError: no kernel image is available for execution on the device$"):
        predict(root, bundle, tmp_path / "s.csv", chain=replace(FAKE, load=broken_load))
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda b: (b / "weights/a.safetensors").write_bytes(b"Some weights"),
            r"a\.safetensors: found sha256 \w+…",
        ),
        (
            lambda b: (b / "weights/a.safetensors").unlink(),
            r"a\.safetensors: not found, expected the sagittal",
        ),
        (lambda b: (b / "weights_manifest.json").unlink(), r"weights_manifest\.json: cannot be read"),
    ],
)
def test_a_broken_bundle_ends_the_run_before_any_row(tmp_path, bundle, damage, message):
    root = write_cohort(tmp_path / "data", {1: ()})
    damage(bundle)
    with pytest.raises(ManifestError, match=message):
        predict(root, bundle, tmp_path / "s.csv", chain=FAKE)
    assert not (tmp_path / "s.csv").exists()


def test_a_bundle_without_the_chain_or_of_another_hash_is_refused(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: ()})
    with pytest.raises(ManifestError, match=r"chain 'baseline' has no weights here, found stages \['sagittal_xy'\]"):
        predict(root, bundle, chain="baseline")
    with pytest.raises(ManifestError, match="another version of dataset owner/slug is attached"):
        predict(root, bundle, chain=FAKE, manifest_hash="0" * 64)


def test_an_empty_folder_is_refused(tmp_path, bundle):
    (tmp_path / "data").mkdir()
    with pytest.raises(CohortError, match=r"data: found no DICOM file in 0 files, expected a folder of lumbar"):
        predict(tmp_path / "data", bundle, tmp_path / "s.csv", chain=FAKE)
    assert not (tmp_path / "s.csv").exists()


def test_a_table_without_its_columns_is_refused(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: ()})
    (root / "test_series_descriptions.csv").write_text("study,series\n1,2\n")
    with pytest.raises(CohortError, match=r"descriptions\.csv: found columns \['study', 'series'\], expected also"):
        predict(root, bundle, chain=FAKE)


@pytest.mark.parametrize("name", ["out", "report", "record"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, bundle, name):
    root = write_cohort(tmp_path / "data", {1: ()})
    (tmp_path / "file").write_text("")
    with pytest.raises(CohortError, match=r"file/x: cannot be written \(Not a directory\), expected a writable file"):
        predict(root, bundle, chain=replace(FAKE, load=broken_load), **{name: tmp_path / "file" / "x"})


def test_some_studies_only(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 6)})
    assert len(predict(root, bundle, chain=FAKE, studies=2)[0]) == 50
    assert list(status(predict(root, bundle, chain=FAKE, studies=[4, 2])[1])) == [2, 4]
    with pytest.raises(CohortError, match=r"found none of the studies \[9\], expected at least one"):
        predict(root, bundle, chain=FAKE, studies=[9])


def test_a_study_without_a_folder_gets_rows_too_and_a_stray_folder_none(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: (), 2: ()})
    (root / "test_images" / "7").mkdir()
    (root / "test_images" / "2").rmdir()
    frame, record = predict(root, bundle, tmp_path / "s.csv", chain=FAKE)
    validate(tmp_path / "s.csv", [*row_ids(1), *row_ids(2)])
    assert_prior(frame, 2)
    assert status(record) == {1: "predicted", 2: "prior"}


def test_the_train_split_is_predicted_too(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: ()}, split="train", sample=False)
    write_cohort(root, {9: ()})
    frame, _ = predict(root, bundle, chain=FAKE, split="train")
    assert frame["row_id"].tolist() == row_ids(1)


# ---- killed and run again ------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from kernel_fakes import FAKE
from lumbar.run import predict
predict(sys.argv[1], sys.argv[2], sys.argv[3], chain=FAKE, time_limit=600)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_a_whole_file_and_the_next_run_completes_it(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {k: ("hang",) if k == 3 else () for k in range(1, 6)})
    out = tmp_path / "submission.csv"
    path = os.pathsep.join([str(HERE.parent), *sys.path])
    expected = [row for k in range(1, 6) for row in row_ids(k)]
    deadline = time.monotonic() + 600
    command = [sys.executable, "-c", SCRIPT, root, bundle, out]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if out.is_file() and (validate(out, expected)["severe"] != PRIOR[2]).any():
                    break
                time.sleep(0.02)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    (root / "test_images/3/hang").unlink()
    partial = validate(out, expected)
    assert 0 < (partial["severe"] != PRIOR[2]).sum() < len(expected)
    (tmp_path / ".submission.csv.tmp").write_text("row_id,nor")
    frame, _ = predict(root, bundle, out, chain=FAKE)
    validate(out, expected)
    assert_predicted(frame, *range(1, 6))
    assert not (tmp_path / ".submission.csv.tmp").exists()
    assert len(COLUMNS) * 5 == len(frame)


@pytest.mark.parametrize(
    "place",
    [
        "data/test_series_descriptions.csv",
        "data/sample_submission.csv",
        "data/test_images/1/submission.csv",
        "bundle/weights_manifest.json",
        "bundle/weights/a.safetensors",
        "link.csv",
        "hard.csv",
    ],
)
@pytest.mark.parametrize("option", ["out", "report", "record"])
def test_an_output_in_the_place_of_an_input_is_refused_and_the_input_stands(tmp_path, bundle, place, option):
    root = write_cohort(tmp_path / "data", {1: ()})
    (root / "sample_submission.csv").write_text("row_id\n" + "\n".join(row_ids(1)) + "\n")
    (tmp_path / "link.csv").symlink_to(root / "sample_submission.csv")
    os.link(bundle / "weights_manifest.json", tmp_path / "hard.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CohortError, match=f"found .* for {option}, expected"):
        predict(root, bundle, chain=FAKE, **{option: tmp_path / place})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_outputs_of_one_name_are_refused(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: ()})
    (tmp_path / "folder").symlink_to(tmp_path)
    with pytest.raises(CohortError, match=r"s.csv: found for out and for record, expected a file for each"):
        predict(root, bundle, tmp_path / "s.csv", chain=FAKE, record=tmp_path / "folder" / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_outputs_beside_the_inputs_are_written(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: ()})
    predict(root, bundle, root / "submission.csv", chain=FAKE, record=bundle / "record.json")
    assert (root / "submission.csv").is_file()
    assert (bundle / "record.json").is_file()


def test_no_more_workers_are_started_than_there_are_studies(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {1: (), 2: ()})
    _, record = predict(root, bundle, chain=FAKE, workers=10**30)
    assert record["devices"] == ["cpu", "cpu"]
