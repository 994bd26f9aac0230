from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar import labels
from lumbar.errors import CohortError
from lumbar_train.data.tables import POINT_COLUMNS, read_cohort


def edit(path: Path, change) -> None:
    frame = pd.read_csv(path, dtype=object)
    frame = change(frame)
    frame.to_csv(path, index=False)


def read(root: Path, **kwargs):
    return read_cohort(root, progress=False, **kwargs)


def test_clean_cohort_is_read_whole(root):
    cohort = read(root)
    truth = pd.read_csv(root / "train.csv")
    assert cohort.labels.shape == (6, 25)
    assert cohort.labels.dtype == np.int8
    assert cohort.study_ids.tolist() == truth["study_id"].tolist()
    assert cohort.labels[1, labels.COLUMNS.index("left_subarticular_stenosis_l1_l2")] == -1
    assert tuple(cohort.points.columns) == POINT_COLUMNS
    assert len(cohort.points) == 6 * 25
    assert set(cohort.points["condition"]) == set(labels.CONDITIONS)
    assert set(cohort.points["level"]) == set(labels.LEVELS)
    assert cohort.points.loc[cohort.points["condition"] == labels.SPINAL, "side"].isna().all()
    assert (cohort.points.loc[cohort.points["condition"] == labels.LEFT_FORAMINAL, "side"] == "left").all()
    assert len(cohort.series) == 18
    assert cohort.dropped == {}
    back = cohort.frame().set_index("study_id")
    expected = truth.set_index("study_id")
    assert ((back == expected) | (back.isna() & expected.isna())).all(axis=None)


def test_fingerprint_follows_content_not_formatting(root):
    before = read(root).fingerprint
    edit(root / "train_label_coordinates.csv", lambda f: f.sample(frac=1.0, random_state=1))
    text = (root / "train.csv").read_text().replace("\n", "\r\n")
    (root / "train.csv").write_bytes(text.encode())
    assert read(root).fingerprint == before
    edit(root / "train.csv", lambda f: f.assign(spinal_canal_stenosis_l1_l2="Severe"))
    assert read(root).fingerprint != before


def test_rows_and_frame_follow_the_order_asked_for(root):
    cohort = read(root)
    assert cohort.frame([104, 101])["study_id"].tolist() == [104, 101]
    with pytest.raises(CohortError, match="study 999 is not in the cohort"):
        cohort.rows([101, 999])


def test_missing_table_names_file_and_columns(root):
    (root / "train_label_coordinates.csv").unlink()
    with pytest.raises(CohortError, match=r"train_label_coordinates\.csv: not found.*instance_number"):
        read(root)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("train.csv", "spinal_canal_stenosis_l4_l5"),
        ("train_label_coordinates.csv", "x"),
        ("train_series_descriptions.csv", "series_description"),
    ],
)
def test_missing_column_is_named(root, table, column):
    edit(root / table, lambda f: f.drop(columns=column))
    with pytest.raises(CohortError, match=f"{table}: found no column {column}"):
        read(root)


def test_empty_file_is_refused(root):
    (root / "train.csv").write_text("")
    with pytest.raises(CohortError, match=r"train\.csv: not a readable CSV"):
        read(root)


def test_table_without_rows_is_refused(root):
    edit(root / "train.csv", lambda f: f[:0])
    with pytest.raises(CohortError, match="no studies"):
        read(root)


@pytest.mark.parametrize("table", ["train", "train_series_descriptions", "train_label_coordinates"])
def test_a_path_of_windows_in_the_place_of_an_id_is_refused_without_the_name_in_it(root, table):
    edit(root / f"{table}.csv", lambda f: f.assign(study_id=["C:\\Users\\Smith\\101", *f.study_id[1:]]))
    with pytest.raises(
        CohortError, match=rf"{table}.csv: row \d+: .*study_id is 'name~.*', expected a whole number"
    ) as caught:
        read(root)
    assert "Smith" not in str(caught.value)


def test_unknown_label_names_study_column_and_value(root):
    edit(root / "train.csv", lambda f: f.assign(spinal_canal_stenosis_l1_l2="Grave"))
    with pytest.raises(CohortError, match="study 101: spinal_canal_stenosis_l1_l2 is 'Grave', expected Normal/Mild"):
        read(root)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("level", "L6/S1", "unknown level 'L6/S1'"),
        ("condition", "Bad Back", "unknown condition 'Bad Back'"),
        ("x", "left", "x is 'left', expected a number"),
        ("y", "inf", "y is 'inf', expected a number"),
        ("instance_number", "1.5", "instance_number is '1.5', expected a whole number"),
    ],
)
def test_unreadable_point_is_refused_with_its_row(root, column, value, message):
    def spoil(frame):
        frame.loc[3, column] = value
        return frame

    edit(root / "train_label_coordinates.csv", spoil)
    with pytest.raises(CohortError, match=r"row 5: " + message.replace("/", "/")):
        read(root)


def test_identical_rows_are_counted_and_contradicting_labels_refused(root):
    edit(root / "train.csv", lambda f: pd.concat([f, f[:2]]))
    edit(root / "train_label_coordinates.csv", lambda f: pd.concat([f, f[:3]]))
    edit(root / "train_series_descriptions.csv", lambda f: pd.concat([f, f[:1]]))
    cohort = read(root)
    assert len(cohort) == 6
    assert cohort.dropped == {"labels: row twice": 2, "points: row twice": 3, "series: row twice": 1}
    edit(root / "train.csv", lambda f: pd.concat([f, f[:1].assign(spinal_canal_stenosis_l1_l2=None)]))
    with pytest.raises(CohortError, match="study 101 has two rows with different labels"):
        read(root)


def test_series_described_twice_differently_is_refused(root):
    edit(
        root / "train_series_descriptions.csv",
        lambda f: pd.concat([f, f[:1].assign(series_description="Axial T2")]),
    )
    with pytest.raises(CohortError, match="series 1010 is described as Sagittal T1 and Axial T2"):
        read(root)


def test_second_point_for_a_label_is_dropped(root):
    edit(root / "train_label_coordinates.csv", lambda f: pd.concat([f, f[:1].assign(x="18.5")]))
    assert read(root).dropped == {"points: second point for one label in a series": 1}


def test_points_off_the_image_and_on_absent_slices_are_counted(root):
    def spoil(frame):
        frame.loc[0, "x"] = "32.5"
        frame.loc[1, "y"] = "-1"
        frame.loc[2, "instance_number"] = "99"
        return frame

    edit(root / "train_label_coordinates.csv", spoil)
    (root / "train_images/102/1021/4.dcm").unlink()
    (root / "train_images/102/1021/4.dcm").write_text("not an image")
    cohort = read(root)
    assert cohort.dropped == {
        "points: outside the image": 2,
        "points: slice missing": 1,
        "points: slice unreadable": 5,
    }
    assert len(cohort.points) == 150 - 8


def test_swapped_sides_are_dropped_in_pairs(root):
    def spoil(frame):
        row = frame["series_id"].eq("1012") & frame["level"].eq("L3/L4")
        frame.loc[row, "x"] = frame.loc[row, "x"].to_numpy()[::-1]
        foraminal = frame["series_id"].eq("1020") & frame["level"].eq("L1/L2")
        frame.loc[foraminal, "instance_number"] = frame.loc[foraminal, "instance_number"].to_numpy()[::-1]
        one_sided = frame["series_id"].eq("1030") & frame["level"].eq("L5/S1")
        frame.loc[one_sided, "instance_number"] = "6"
        return frame

    edit(root / "train_label_coordinates.csv", spoil)
    assert read(root).dropped == {"points: sides swapped": 4, "points: both sides marked on one side": 2}


def test_a_table_with_all_sides_exchanged_is_refused(root):
    def spoil(frame):
        return frame.assign(
            condition=frame["condition"].str.replace("Left", "~").str.replace("Right", "Left").str.replace("~", "Right")
        )

    edit(root / "train_label_coordinates.csv", spoil)
    with pytest.raises(CohortError, match="in 60 of 60 pairs the left point lies on the patient's right"):
        read(root)


def test_series_folder_gone_is_counted_with_its_points(root):
    shutil.rmtree(root / "train_images/103/1031")
    cohort = read(root)
    assert cohort.dropped == {"series: folder missing": 1, "points: slice missing": 5}
    assert 103 in cohort.study_ids  # the study stays: it is predicted from what is left, and scored


def test_wrong_image_folder_is_refused(root):
    shutil.rmtree(root / "train_images")
    with pytest.raises(CohortError, match="none of 18 described series has a folder"):
        read(root)


def test_points_of_unknown_studies_and_series_are_counted(root):
    edit(root / "train.csv", lambda f: f[f["study_id"] != "106"])
    edit(root / "train_series_descriptions.csv", lambda f: f[f["series_id"] != "1011"])
    assert read(root).dropped == {
        "points: series not described": 5,
        "points: study without labels": 25,
        "series: study without labels": 3,
    }


def test_external_points_join_through_their_series(root, tmp_path):
    file = tmp_path / "external.csv.gz"
    rows = [{"series_id": 1010, "instance_number": 4, "level": level, "x": 16, "y": 9} for level in ("L1/L2", "l2_l3")]
    rows.append({"series_id": 777, "instance_number": 4, "level": "L1/L2", "x": 16, "y": 9})
    pd.DataFrame(rows).to_csv(file, index=False)
    cohort = read(root, points_file=file)
    external = cohort.points[cohort.points["source"] == "external"]
    assert external["study_id"].tolist() == [101, 101]
    assert external["condition"].tolist() == ["disc", "disc"]
    assert cohort.dropped == {"points: external series not described": 1}
    assert cohort.fingerprint != read(root).fingerprint


def test_external_table_without_its_columns_is_refused(root, tmp_path):
    file = tmp_path / "external.csv"
    pd.DataFrame({"series_id": [1010], "x": [1]}).to_csv(file, index=False)
    with pytest.raises(CohortError, match="found no column instance_number, level, y"):
        read(root, points_file=file)
