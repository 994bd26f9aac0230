"""The floor as a submission, the thresholds' calibration, random streams, and the cache of kernels."""

import shutil

import numpy as np
import pandas as pd
import pytest

from lumbar import labels
from lumbar.errors import CohortError
from lumbar_phantom import _jit, calibrate, oracle, rates, severity
from lumbar_phantom.streams import stream

FAR = {labels.COLUMNS[0]: 0.02, labels.COLUMNS[7]: 0.98}  # narrowing far from every threshold


@pytest.fixture
def cohort(tmp_path):
    """Three studies with labels and truth; one level of the last study has no truth."""
    rng = np.random.default_rng(0)
    rows, truth = [], []
    for study in (10, 11, 12):
        row = {"study_id": study}
        for c, condition in enumerate(labels.CONDITIONS):
            for k, level in enumerate(labels.LEVELS):
                column = labels.COLUMNS[5 * c + k]
                narrowing = FAR.get(column, 0.5)
                row[column] = labels.SEVERITIES[rng.integers(3)]
                if (study, c, k) != (12, 4, 4):
                    truth.append((study, condition, level, narrowing))
        rows.append(row)
    pd.DataFrame(rows).to_csv(tmp_path / "solution.csv", index=False)
    pd.DataFrame(truth, columns=["study_id", "condition", "level", "narrowing"]).to_parquet(tmp_path / "truth.parquet")
    return tmp_path


def test_the_oracle_answers_every_row_and_is_sure_far_from_the_thresholds(cohort):
    frame = oracle.oracle_frame(cohort, "test").set_index("row_id")
    assert list(frame.index) == [row for study in (10, 11, 12) for row in labels.row_ids(study)]
    assert frame.sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert frame.loc[f"10_{labels.COLUMNS[0]}", "normal_mild"] > 0.99
    assert frame.loc[f"10_{labels.COLUMNS[7]}", "severe"] > 0.99


def test_without_truth_the_oracle_answers_the_weighted_frequencies(cohort):
    frame = oracle.oracle_frame(cohort, "test").set_index("row_id")
    column = labels.COLUMNS[24]
    solution = pd.read_csv(cohort / "solution.csv")[column]
    weights = np.array([(solution == s).sum() * w for s, w in zip(labels.SEVERITIES, (1, 2, 4), strict=True)])
    assert frame.loc[f"12_{column}"].to_numpy() == pytest.approx(weights / weights.sum(), abs=0.02)


@pytest.mark.parametrize("missing", ["truth.parquet", "solution.csv"])
def test_a_cohort_without_truth_or_labels_is_refused(cohort, missing, capsys):
    (cohort / missing).unlink()
    with pytest.raises(CohortError, match=f"{missing}: not found, expected a phantom cohort with its truth"):
        oracle.oracle_frame(cohort, "test")
    assert oracle.main(["--data", str(cohort), "--out", str(cohort / "floor.csv")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (cohort / "floor.csv").exists()


def test_the_command_writes_a_submission(cohort):
    assert oracle.main(["--data", str(cohort), "--out", str(cohort / "floor.csv")]) == 0
    assert list(pd.read_csv(cohort / "floor.csv").columns) == ["row_id", *labels.SEVERITY_COLUMNS]


def test_probabilities_of_the_oracle_are_those_of_many_readers():
    narrowing = np.random.default_rng(1).uniform(0.2, 0.8, (5, 5))
    grades = np.array([severity.simulate_reader(np.random.default_rng(i), narrowing) for i in range(4000)])
    shares = np.stack([(grades == g).mean(axis=0) for g in range(3)], axis=-1)
    assert np.abs(shares - severity.oracle_probs(narrowing)).max() < 0.03


def test_a_readers_bias_is_shared_by_a_study():
    narrowing = severity.cuts()[..., 0]  # at the threshold: a coin is tossed
    grades = np.array([severity.simulate_reader(np.random.default_rng(i), narrowing) for i in range(2000)]) > 0
    pairs = np.corrcoef(grades[:, 0, 0], grades[:, 3, 3])[0, 1]
    assert 0.1 < pairs < 0.35
    assert grades.mean() == pytest.approx(0.5, abs=0.03)


def test_the_prior_is_weighted_as_the_metric_is():
    grades = np.zeros((4, 5, 5), int)
    grades[0], grades[1] = 2, 1
    np.testing.assert_allclose(severity.prior_probs(grades)[2, 2], np.array([2, 2, 4]) / 8, atol=1e-3)


def test_missing_labels_do_not_count_in_the_score():
    grades = np.random.default_rng(0).integers(0, 3, (6, 5, 5))
    probs = np.random.default_rng(1).dirichlet((1, 1, 1), (6, 5, 5))
    worse = probs.copy()
    worse[0, 1, 2] = (1e-9, 1e-9, 1)
    gaps = grades.copy()
    gaps[0, 1, 2] = -1
    assert severity.score(gaps, worse) == pytest.approx(severity.score(gaps, probs))


def test_calibrated_thresholds_give_the_target_rates_back():
    narrowing = np.random.default_rng(3).beta(2, 4, (4000, 5, 5))
    cuts = calibrate.derive(narrowing, 0.05)
    assert cuts.shape == (3, 5, 2)
    reading = narrowing + 0.05 * np.random.default_rng(4).standard_normal(narrowing.shape)
    for group, members in enumerate(([0], [1, 2], [3, 4])):
        for k in range(5):
            moderate, severe = rates.TARGET_RATES[members[0]][k]
            above = reading[:, members, k].reshape(-1, 1) > cuts[group, k]
            np.testing.assert_allclose(above.mean(axis=0), (moderate + severe, severe), atol=0.02)


def test_the_calibration_command_prints_thresholds_and_floor(monkeypatch, capsys):
    monkeypatch.setattr(rates, "CUTS", rates.CUTS)
    monkeypatch.setattr(rates, "NOISE", rates.NOISE)
    monkeypatch.setattr("sys.argv", ["calibrate", "--patients", "20"])
    calibrate.main()
    out = capsys.readouterr().out
    assert out.startswith("CUTS = (")
    assert "floor 0." in out


def test_streams_differ_by_seed_index_and_purpose_and_never_by_order():
    names = [(seed, index, purpose) for seed in range(3) for index in range(3) for purpose in ("plan", "paint")]
    drawn = {name: stream(*name).random() for name in names}
    assert len(set(drawn.values())) == len(names)
    assert all(stream(*name).random() == drawn[name] for name in reversed(names))
    assert stream(0, 0, "series", 1).random() != stream(0, 0, "series", 2).random()


def test_a_change_of_any_kernel_or_constant_moves_the_cache(tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(_jit._HERE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_jit, "_HERE", package)
    folders = {_jit._cache_folder()}
    for name in ("space.py", "rle.py", "anatomy.py", "tissue_labels.py"):
        with open(package / name, "a") as file:
            file.write("# changed\n")
        folders.add(_jit._cache_folder())
    assert len(folders) == 5
    with open(package / "cohort.py", "a") as file:
        file.write("# changed\n")
    assert _jit._cache_folder() in folders
