"""Training reads the tables that the kernel reads, in every form; what the kernel leaves out and names, it refuses."""

from __future__ import annotations

import pytest

from lumbar.errors import CohortError
from lumbar.io.tables import read_descriptions
from lumbar_train.data.tables import read_cohort


def lines(frame):
    return [line for lines in frame.attrs["problems"].values() for line in lines]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.upper().replace("TRAIN", "train"),
        lambda text: text + ",,\n",
        lambda text: text.replace("1010,", "1010.0,"),
        lambda text: text.replace("Sagittal T1\n", "Sagittal T1 \n"),
    ],
)
def test_training_reads_the_same_forms(root, change):
    before = read_cohort(root, progress=False)
    path = root / "train_series_descriptions.csv"
    path.write_text(change(path.read_text()))
    after = read_cohort(root, progress=False)
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize("name", ["train.csv", "train_label_coordinates.csv"])
def test_training_reads_labels_and_points_with_semicolons_and_marks(root, name):
    before = read_cohort(root, progress=False)
    path = root / name
    text = path.read_text().replace(",", ";")
    text = text.replace(".0", ",0").replace(".5", ",5") if name != "train.csv" else text
    path.write_bytes((text + ";;\n\n").encode("utf-16"))
    assert read_cohort(root, progress=False).fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("101,,Axial T2", "row 20: series_id is blank, expected a whole number"),
        ("sub-01,12,Axial T2", "row 20: series 12: study_id is 'sub-01', expected a whole number"),
        ("101,12,Coronal", "row 20: series 12: found description 'Coronal', expected Sagittal T1"),
    ],
)
def test_training_refuses_in_one_line_what_the_kernel_leaves_out(root, row, message):
    path = root / "train_series_descriptions.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(CohortError, match=f"train_series_descriptions.csv: {message}"):
        read_cohort(root, progress=False)
    assert len(lines(read_descriptions(root, "train"))) == 1
