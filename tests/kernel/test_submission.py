import numpy as np
import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar.labels import COLUMNS, row_ids
from lumbar.output.submission import (
    Submission,
    check_writable,
    expected_studies,
    normalise,
    validate,
    write_atomically,
)

PRIOR = {column: (0.6, 0.3, 0.1) for column in COLUMNS}


def random_probs(seed=0):
    return np.random.default_rng(seed).dirichlet((1.0, 1.0, 1.0), 25)


def test_prior_rows_stand_on_disk_at_once(tmp_path):
    path = tmp_path / "submission.csv"
    Submission([7, 5], PRIOR, path)
    frame = validate(path, [*row_ids(5), *row_ids(7)])
    assert frame["row_id"].tolist() == [*row_ids(7), *row_ids(5)]
    assert frame.iloc[30].tolist()[1:] == [0.6, 0.3, 0.1]


def test_a_study_replaces_its_own_rows_only(tmp_path):
    path = tmp_path / "submission.csv"
    submission = Submission([7, 5], PRIOR, path)
    submission.replace(5, random_probs())
    frame = validate(path, [*row_ids(5), *row_ids(7)])
    np.testing.assert_allclose(frame.iloc[25:, 1:].to_numpy(dtype=float), random_probs(), atol=2e-6)
    assert (frame.iloc[:25, 1:] == [0.6, 0.3, 0.1]).all(axis=None)
    pd.testing.assert_frame_equal(frame, submission.frame(), check_dtype=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["submission.csv"]


def test_without_a_path_nothing_is_written(tmp_path):
    submission = Submission([1], PRIOR)
    submission.replace(1, random_probs())
    assert len(submission.frame()) == 25
    assert list(tmp_path.iterdir()) == []


def test_rows_are_normalised_and_no_class_is_impossible():
    values = normalise(np.array([[2.0, 0.0, 0.0]] * 25, dtype=np.float32))
    np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=3e-8)
    assert values.min() >= 9e-7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:24], r"probabilities: found shape \(24, 3\), expected \(25, 3\)"),
        (lambda p: np.where(np.arange(3) == 1, np.nan, p), "canal_stenosis_l1_l2 moderate is nan, expected finite"),
        (lambda p: np.where(np.arange(3) == 2, np.inf, p), "canal_stenosis_l1_l2 severe is inf, expected finite"),
        (lambda p: -p, r"normal_mild is -\S+, expected 0 or more"),
        (lambda p: p * 0, "spinal_canal_stenosis_l1_l2 sums to 0, expected above 0"),
    ],
)
def test_bad_probabilities_are_refused_and_change_nothing(tmp_path, change, message):
    path = tmp_path / "submission.csv"
    submission = Submission([1], PRIOR, path)
    before = path.read_bytes()
    with pytest.raises(CohortError, match=message):
        submission.replace(1, change(random_probs()))
    assert path.read_bytes() == before
    np.testing.assert_allclose(submission.probs(1)[0], [0.6, 0.3, 0.1])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "submission.csv"
    write_atomically(path, "old")
    monkeypatch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        CohortError, match=r"submission\.csv: cannot be written \(No space left on device\), expected a"
    ):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_what_a_killed_run_left_behind_is_overwritten(tmp_path):
    (tmp_path / ".submission.csv.tmp").write_text("half a fi")
    Submission([1], PRIOR, tmp_path / "submission.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_an_unwritable_place_is_found_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CohortError, match=r"file/s\.csv: cannot be written \(Not a directory\), expected a writable"):
        check_writable(tmp_path / "file" / "s.csv")
    with pytest.raises(CohortError, match=r"s\.csv: cannot be written \(No such file or directory\)"):
        check_writable(tmp_path / "nowhere" / "s.csv")
    with pytest.raises(CohortError, match="is a folder, expected a file's name"):
        check_writable(tmp_path)
    (tmp_path / "good.csv").write_text("old")
    check_writable(tmp_path / "good.csv")
    assert (tmp_path / "good.csv").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "good.csv"]


def test_studies_are_the_samples_then_those_of_the_table(tmp_path, caplog):
    Submission([9, 2], PRIOR, tmp_path / "sample_submission.csv")
    assert expected_studies(tmp_path, "test", [2, 3], [2, 3]) == [9, 2, 3]
    assert caplog.text == ""
    assert expected_studies(tmp_path, "test", [2, 3, 4], [3]) == [9, 2, 3]
    assert "1 study folders in no table get no rows, first 4" in caplog.text
    assert expected_studies(tmp_path, "train", [2, 3], []) == [2, 3]
    assert expected_studies(tmp_path / "elsewhere", "test", [2, 3], []) == [2, 3]


def test_a_sample_of_another_test_set_is_left_aside(tmp_path, caplog):
    Submission([9, 8], PRIOR, tmp_path / "sample_submission.csv")
    assert expected_studies(tmp_path, "test", [2, 3], [2, 3]) == [2, 3]
    assert "none of its 2 studies has images or series, so it is left aside" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row_id,severe\n12_back_pain,1\n", "found row_id '12_back_pain', expected <study_id>_<condition>_<level>"),
        ("rowid,severe\n12,1\n", r"found columns \['rowid', 'severe'\], expected row_id"),
        ("", r"sample_submission\.csv: not a CSV table"),
    ],
)
def test_a_sample_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "sample_submission.csv").write_text(text)
    with pytest.raises(CohortError, match=message):
        expected_studies(tmp_path, "test", [1], [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="severe"), r"found columns \['row_id', 'normal_mild', 'moderate'\], expected"),
        (lambda f: pd.concat([f, f.iloc[:2]]), "found 2 repeated rows, expected each row_id once"),
        (lambda f: f.iloc[1:], "found 24 rows, expected 25: 1 missing, 0 unexpected, first 1_spinal_canal_stenosis_l1"),
        (lambda f: f.assign(row_id=row_ids(2)), "found 25 rows, expected 25: 25 missing, 25 unexpected, first 1_left"),
        (lambda f: f.assign(severe="x"), "found text among the probabilities, expected numbers"),
        (lambda f: f.assign(severe=0.4), r"row 1_\S+: found \[0\.6, 0\.3, 0\.4\], expected 3 probabilities that sum"),
        (lambda f: f.assign(severe=np.nan), "expected 3 probabilities that sum to 1"),
        (lambda f: f.assign(severe=-0.1, moderate=0.5), "expected 3 probabilities that sum to 1"),
    ],
)
def test_a_finished_file_is_validated(tmp_path, change, message):
    frame = Submission([1], PRIOR).frame()
    change(frame).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(CohortError, match=message):
        validate(tmp_path / "s.csv", row_ids(1))
