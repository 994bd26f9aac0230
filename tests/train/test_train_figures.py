from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar import labels
from lumbar.metric import score_arrays
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint
from lumbar_train.data.tables import read_cohort
from lumbar_train.data.true_points import true_localisation
from lumbar_train.evaluation.evaluate import partial_answers
from lumbar_train.evaluation.point_errors import axial_assignments, sagittal_errors, summarise, truth_points
from lumbar_train.evaluation.scoring import (
    TERMS,
    confusion,
    difference,
    ratio,
    reliability,
    scores,
    study_losses,
    to_plain,
)


def random_case(n: int = 80, seed: int = 0):
    rng = np.random.default_rng(seed)
    grades = rng.choice([-1, 0, 1, 2], (n, 25), p=(0.05, 0.7, 0.15, 0.1)).astype(np.int8)
    probs = rng.dirichlet((3, 1, 1), (n, 25))
    return grades, probs


def test_values_are_those_of_the_metric():
    for seed in range(5):
        grades, probs = random_case(seed=seed)
        grades[0, :5] = -1  # a study without any canal label
        expected = score_arrays(grades.astype(np.int64), probs)
        found = scores(grades, probs, n_bootstrap=10)
        for term in TERMS:
            assert found[term].value == pytest.approx(getattr(expected, term), abs=1e-12), term


def test_intervals_hold_the_value_and_shrink_with_more_studies():
    widths = []
    for n in (40, 640):
        grades, probs = random_case(n)
        found = scores(grades, probs)["total"]
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2.5


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Of 200 cohorts drawn from one population, about 95 % of intervals hold the population's score."""
    grades, probs = random_case(4000, seed=1)
    truth = score_arrays(grades.astype(np.int64), probs).spinal
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        rows = rng.choice(4000, 120, replace=False)
        found = scores(grades[rows], probs[rows], n_bootstrap=300)["spinal"]
        hits += found.low <= truth <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_paired_differences_are_tighter_than_unpaired_ones():
    grades, probs = random_case(200)
    better = 0.9 * probs + 0.1 * np.eye(3)[np.maximum(grades, 0)]
    found = difference(grades, probs, better)["total"]
    assert found.high < 0
    assert not found.is_worse
    assert difference(grades, better, probs)["total"].is_worse
    unpaired = scores(grades, probs)["total"]
    assert found.high - found.low < 0.5 * (unpaired.high - unpaired.low)
    part = ratio(grades, better, probs)
    assert part.low < part.value < part.high < 1


def test_a_rare_term_without_labels_in_some_draws_keeps_an_interval():
    grades = np.full((5, 25), -1, np.int8)
    grades[:, 5:] = 0
    grades[0, :5] = 2  # only one study has canal labels: some bootstrap cohorts have none
    probs = np.full((5, 25, 3), 1 / 3)
    found = scores(grades, probs)
    assert np.isfinite([found[term].low for term in TERMS]).all()


def test_constants_cost_what_they_must():
    grades, _ = random_case()
    uniform = np.full((80, 25, 3), 1 / 3)
    assert scores(grades, uniform, n_bootstrap=5)["spinal"].value == pytest.approx(np.log(3))


def test_weighted_fits_are_reliable_as_weighted_and_after_correction():
    """Labels drawn from known frequencies; predictions as a fit under weights 1/2/4 would give them."""
    rng = np.random.default_rng(0)
    plain = rng.dirichlet((6, 2, 1), (4000, 25))
    grades = (rng.random((4000, 25, 1)) > plain.cumsum(-1)).sum(-1).clip(max=2).astype(np.int8)
    weighted = plain * np.array([1, 2, 4])
    weighted /= weighted.sum(-1, keepdims=True)
    assert np.allclose(to_plain(weighted), plain)
    for is_weighted in (True, False):
        for item in reliability(grades, weighted, is_weighted=is_weighted):
            assert item.error < 0.012, item
    # without the correction, "severe" would be claimed far too often
    naive = reliability(grades, to_plain(plain), is_weighted=True)
    assert max(item.error for item in naive) > 0.05


def test_reliability_ignores_missing_labels_and_counts_rows():
    grades, probs = random_case()
    plain = reliability(grades, probs, is_weighted=False)
    spinal = [item for item in plain if item.group == "spinal"]
    assert all(item.weight.sum() == (grades[:, :5] >= 0).sum() for item in spinal)
    assert len(plain) == 9


def test_confusion_counts_every_label_once():
    grades, probs = random_case()
    tables = confusion(grades, probs)
    assert sum(table.sum() for table in tables.values()) == (grades >= 0).sum()
    perfect = np.eye(3)[np.maximum(grades, 0)]
    assert all((table == np.diag(np.diag(table))).all() for table in confusion(grades, perfect).values())


def test_study_losses_add_up_to_the_total():
    grades, probs = random_case()
    assert study_losses(grades, probs).sum() == pytest.approx(scores(grades, probs, n_bootstrap=5)["total"].value)


def test_steps_use_the_models_that_saw_something_and_the_prior_elsewhere():
    logits = np.zeros((3, 5, 5, 3), np.float32)
    logits[0, ..., 2], logits[1, ..., 0] = 10.0, 10.0
    mask = np.zeros((3, 5, 5), bool)
    mask[0, :3], mask[1, 3:] = True, True
    prior = np.tile([0.5, 0.3, 0.2], (25, 1))
    answers = partial_answers(logits, mask, prior, (True, False, False))
    assert (answers["sagittal only"][:15].argmax(1) == 2).all()
    assert np.allclose(answers["sagittal only"][15:], prior[15:])
    assert (answers["+ axial"][15:].argmax(1) == 0).all()
    assert np.allclose(answers["+ axial"].sum(1), 1)


# Places


def sagittal_point(series, level, side, xyz, confidence=1.0):
    return SagittalPoint(str(series), level, side, 1, 0.0, 0.0, tuple(map(float, xyz)), confidence)


@pytest.fixture
def cohort(root: Path):
    return read_cohort(root, progress=False)


def test_labelled_points_are_lifted_to_patient_space(cohort):
    truth = truth_points(cohort)
    assert len(truth) == 150
    canal = truth[(truth["condition"] == labels.SPINAL) & (truth["study_id"] == 101)].set_index("level")
    # slice 4 lies at x = 0; pixel (16, 6) is 16 * 4 mm behind -64 and 6 * 4 mm below 64
    assert canal.loc["l1_l2", ["x_mm", "y_mm", "z_mm"]].tolist() == [0.0, 0.0, 40.0]
    left = truth[(truth["condition"] == labels.LEFT_SUBARTICULAR) & (truth["level"] == "l2_l3")].iloc[0]
    assert [left["x_mm"], left["y_mm"], left["z_mm"]] == [16.0, 0.0, 50.0 - 20.0]


def test_the_truth_table_of_a_phantom_is_preferred(cohort):
    truth = truth_points(cohort).assign(x_mm=7.0, x_px=1.0, y_px=1.0, narrowing=0.5)
    stranger = truth.assign(study_id=999)
    pd.concat([truth, stranger]).to_parquet(cohort.root / "truth.parquet", index=False)
    found = truth_points(cohort)
    assert (found["x_mm"] == 7.0).all()
    assert set(found["study_id"]) == set(cohort.study_ids)


def test_sagittal_errors_are_distances_and_fifty_where_missing(cohort):
    truth = truth_points(cohort)
    truth = truth[truth["study_id"] == 101]
    own = int(truth.loc[truth["condition"] == labels.SPINAL, "instance_number"].iloc[0])
    found = {
        101: Localisation(
            [
                sagittal_point(1011, "l1_l2", None, (3, 0, 44)),
                sagittal_point(1011, "l1_l2", None, (90, 0, 44), confidence=0.1),  # weaker: not the answer
                sagittal_point(1010, "l2_l3", None, (0, 0, 20)),  # right, but in another series than marked
                replace(sagittal_point(1011, "l3_l4", None, (0, 0, 0)), instance_number=own + 1),
                replace(sagittal_point(1011, "l4_l5", None, (0, 0, 0)), instance_number=own - 2),
                replace(sagittal_point(1011, "l5_s1", None, (0, 0, 0)), instance_number=own, frame=2),
            ]
        )
    }
    errors = sagittal_errors(truth, found).set_index(["condition", "level"])
    assert errors.loc[(labels.SPINAL, "l1_l2"), "error_mm"] == 5.0
    assert errors.loc[(labels.SPINAL, "l1_l2"), "in_plane_mm"] == 4.0
    assert errors.loc[(labels.SPINAL, "l1_l2"), "disc_mm"] == 20.0
    assert errors.loc[(labels.SPINAL, "l2_l3"), "error_mm"] == 50.0
    off = errors.loc[labels.SPINAL, "slices_off"]
    assert off[["l3_l4", "l4_l5"]].tolist() == [1, 2]
    assert off[["l2_l3", "l5_s1"]].isna().all()  # missing; a frame, whose number no file name tells
    assert errors["is_missing"].sum() == 11
    figures = summarise(errors.reset_index())
    assert figures["median_mm"] == 50.0
    assert figures["missing"] == pytest.approx(11 / 15)
    near = int((off <= 1).sum())
    assert figures["slice_within_one"] == pytest.approx(near / 14)  # the frame is neither right nor wrong
    assert near == 1


def axial_level(level, instance, left=(20.0, 16.0), right=(12.0, 16.0), distance=0.0):
    return AxialLevel("1012", level, instance, distance, left, right)


def test_an_axial_slice_belongs_to_the_nearest_true_level(cohort):
    truth = truth_points(cohort)
    truth = truth[truth["study_id"] == 101]
    # canal points lie at z 40, 20, 0, -20, -40, slices 1..10 at z 50, 40, ..., -40
    found = {
        101: Localisation(
            axial_levels=[
                axial_level("l1_l2", 2),
                axial_level("l2_l3", 2),  # taken for the level above
                axial_level("l3_l4", 9, distance=-4.0),
                axial_level("l3_l4", 6, distance=1.0),  # nearer than the other entry: this one counts
                axial_level("l4_l5", 8, left=(21.0, 16.0)),
            ]
        )
    }
    table = axial_assignments(truth, found, cohort).set_index("level")
    assert table["is_right"].to_dict() == {"l1_l2": True, "l2_l3": False, "l3_l4": True, "l4_l5": True, "l5_s1": False}
    assert table.loc["l2_l3", "belongs_to"] == "l1_l2"
    assert pd.isna(table.loc["l5_s1", "belongs_to"])
    assert table.loc["l5_s1", "left_mm"] == 50.0
    assert table.loc["l1_l2", "left_mm"] == 10.0  # marked on slice 1, ten millimetres above
    assert table.loc["l4_l5", "left_mm"] == pytest.approx(np.hypot(10.0, 4.0))


def test_a_slice_without_geometry_is_wrong_not_fatal(cohort):
    truth = truth_points(cohort)
    truth = truth[truth["study_id"] == 101]
    (cohort.root / "train_images/101/1012/2.dcm").unlink()
    found = {101: Localisation(axial_levels=[axial_level("l1_l2", 2)])}
    table = axial_assignments(truth, found, cohort).set_index("level")
    assert not table["is_right"].any()
    assert table.loc["l1_l2", "left_mm"] == 50.0


def test_true_places_have_no_error(cohort):
    from lumbar.study import read_study

    truth = truth_points(cohort)
    found = {}
    for study in map(int, cohort.study_ids):
        series = read_study(cohort.root, "train", study, cohort.series, workers=1)
        found[study] = true_localisation(series, truth[truth["study_id"] == study])
    errors = sagittal_errors(truth, found)
    assert len(errors) == 6 * 15
    assert errors["error_mm"].max() < 1e-9
    assert not errors["is_missing"].any()
    table = axial_assignments(truth, found, cohort)
    assert table["is_right"].all()
    assert all(len(place.axial_levels) == 5 for place in found.values())
