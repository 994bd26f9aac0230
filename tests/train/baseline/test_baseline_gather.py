"""Out-of-fold answers of the baseline and their figures, from fits written by hand."""

import numpy as np
import pandas as pd
import pytest

from lumbar.labels import COLUMNS, SEVERITY_COLUMNS, row_ids
from lumbar_train.baseline.fit import LOGITS
from lumbar_train.baseline.gather import (
    all_figures,
    answer_frame,
    column_figures,
    out_of_fold,
    study_means,
    submission_frame,
)
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import LeakError

COLUMN = COLUMNS[3]
STUDIES = np.arange(1, 9)
FOLDS = pd.DataFrame({"study_id": STUDIES, "fold": (STUDIES - 1) % 2})
EVEN = [1 / 3, 1 / 3, 1 / 3]


def cohort(tmp_path):
    labels = np.tile(np.array([0, 0, 1, 1, 2, 2, 0, -1], np.int8)[:, None], (1, 25))
    return Cohort(tmp_path, "train", STUDIES, labels, pd.DataFrame(), pd.DataFrame())


def fits(tmp_path, *, seen=None, studies=None, folds=(0, 1)):
    """Two slices a study, logits that know the class; results as `fit.json` has them."""
    results = {}
    for fold in folds:
        own = FOLDS.loc[FOLDS["fold"] == fold, "study_id"].tolist() if studies is None else studies
        rows = []
        for study in own:
            grade = [0, 0, 1, 1, 2, 2, 0, 0][study - 1]
            rows += [(study, 10 * study, k, f"{study}/{k}.png", *(3.0 * np.eye(3)[grade])) for k in (1, 2)]
        frame = pd.DataFrame(rows, columns=["study_id", "series_id", "instance_number", "image_path", *LOGITS])
        folder = tmp_path / COLUMN / f"fold{fold}"
        folder.mkdir(parents=True)
        frame.to_parquet(folder / "oof.parquet")
        others = FOLDS.loc[FOLDS["fold"] != fold, "study_id"].tolist() if seen is None else seen
        results[COLUMN, fold] = {"status": "fitted", "seen": others, "network": {"balance": EVEN}}
    return results


def test_each_study_is_answered_by_the_fold_that_held_it_out(tmp_path):
    data = cohort(tmp_path)
    answers = out_of_fold(tmp_path, fits(tmp_path), data, FOLDS)
    assert answers.probs.shape == (8, 25, 3)
    np.testing.assert_allclose(answers.probs.sum(axis=-1), 1)
    assert (answers.probs[:7, 3].argmax(axis=1) == data.labels[:7, 3]).all()
    np.testing.assert_array_equal(np.delete(answers.probs, 3, axis=1), np.delete(answers.prior, 3, axis=1))
    frame = answers.slices[COLUMN]
    assert (frame["fold"] == (frame["study_id"] - 1) % 2).all()
    assert frame.loc[frame["study_id"] == 8, "label"].tolist() == ["", ""]


def test_the_prior_of_a_study_is_of_the_other_folds(tmp_path):
    data = cohort(tmp_path)
    answers = out_of_fold(tmp_path, fits(tmp_path), data, FOLDS)
    np.testing.assert_allclose(answers.prior[0], data.prior(STUDIES[1::2]))
    np.testing.assert_allclose(answers.prior[1], data.prior(STUDIES[::2]))


def test_balanced_answers_do_not_know_the_prior(tmp_path):
    answers = out_of_fold(tmp_path, fits(tmp_path), cohort(tmp_path), FOLDS)
    expected = np.exp([3.0, 0, 0]) / np.exp([3.0, 0, 0]).sum()
    np.testing.assert_allclose(answers.balanced[0, 3], expected, rtol=1e-6)
    assert not np.allclose(answers.untempered[0, 3], expected)


def test_a_fold_that_could_not_be_fitted_keeps_its_prior(tmp_path):
    results = fits(tmp_path)
    results[COLUMN, 1] = {"status": "constant", "seen": []}
    answers = out_of_fold(tmp_path, results, cohort(tmp_path), FOLDS)
    np.testing.assert_array_equal(answers.probs[1::2], answers.prior[1::2])
    assert not np.allclose(answers.probs[::2, 3], answers.prior[::2, 3])


def test_a_fit_that_has_seen_a_study_is_refused(tmp_path):
    with pytest.raises(LeakError, match="study 1 is predicted by fold 0's weights, which were fitted on it"):
        out_of_fold(tmp_path, fits(tmp_path, seen=[1, 2]), cohort(tmp_path), FOLDS)


def test_a_study_of_another_fold_is_refused(tmp_path):
    with pytest.raises(LeakError):
        out_of_fold(tmp_path, fits(tmp_path, seen=[], studies=[2], folds=(0,)), cohort(tmp_path), FOLDS)


def test_the_predicted_label_ignores_the_weights_of_the_metric():
    prior = np.array([0.4, 0.3, 0.3])  # weighted 1/2/4: severe is the rarest
    frame = pd.DataFrame([(1, 10, "a.png", 0.0, 0.0, 0.0)], columns=["study_id", "series_id", "image_path", *LOGITS])
    out = answer_frame(frame, prior, EVEN)
    assert out["predicted_label"].tolist() == ["Normal/Mild"]
    assert out[list(SEVERITY_COLUMNS)].to_numpy()[0] == pytest.approx(prior)
    sure = frame.assign(**{LOGITS[2]: 4.0})
    assert answer_frame(sure, prior, EVEN)["predicted_label"].tolist() == ["Severe"]
    assert answer_frame(sure, prior, EVEN, temperature=50.0)["predicted_label"].tolist() == ["Normal/Mild"]


def test_a_study_is_the_mean_of_its_slices():
    frame = pd.DataFrame({"study_id": [7, 7, 3], "normal_mild": [1.0, 0.0, 0.2], "moderate": [0.0, 1.0, 0.3],
                          "severe": [0.0, 0.0, 0.5]})  # fmt: skip
    (first, low), (second, high) = study_means(frame)
    assert (first, second) == (3, 7)
    assert low == pytest.approx([0.2, 0.3, 0.5])
    assert high == pytest.approx([0.5, 0.5, 0.0])


def test_a_submission_has_the_rows_of_its_studies():
    frame = submission_frame([5, 6], np.full((2, 25, 3), 1 / 3))
    assert frame["row_id"].tolist() == [*row_ids(5), *row_ids(6)]


def test_figures_of_a_column_are_weighted_and_leave_out_missing_labels():
    labels = np.array([0, 2, -1])
    probs = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0, 0, 1]])
    prior = np.full((3, 3), 1 / 3)
    figures = column_figures(labels, probs, prior)
    assert figures["studies"] == 2
    assert figures["log_loss"] == pytest.approx(np.log(2))
    assert figures["constant_log_loss"] == pytest.approx(np.log(3))
    assert figures["confusion"] == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]  # 0.5 / 4 is less than 0.25 / 1
    assert figures["accuracy"] == 0.5
    assert column_figures(np.array([-1]), probs[:1], prior[:1]) == {"studies": 0}


def test_columns_that_lose_to_their_constant_are_listed(tmp_path):
    data = cohort(tmp_path)
    answers = out_of_fold(tmp_path, fits(tmp_path), data, FOLDS)
    figures = all_figures(data.labels, answers, [COLUMN, COLUMNS[4]])
    assert figures["not_better_than_constant"] == [COLUMNS[4]]  # it has the constant itself
    assert set(figures["columns"][COLUMN]["folds"]) == {"0", "1"}
    assert figures["columns"][COLUMN]["log_loss"] < figures["columns"][COLUMN]["constant_log_loss"]
