import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from lumbar.errors import CohortError
from lumbar.labels import COLUMNS, SEVERITIES, SEVERITY_COLUMNS
from lumbar.metric import Score, constant_submission, prior_table, read_table, score, uniform_table

WEIGHT = {"Normal/Mild": 1, "Moderate": 2, "Severe": 4}


def random_frames(seed, n_studies=40, missing=0.05, p=(0.7, 0.2, 0.1)):
    rng = np.random.default_rng(seed)
    ids = rng.choice(10**9, n_studies, replace=False)
    labels = rng.choice(np.array([*SEVERITIES], dtype=object), (n_studies, 25), p=p)
    labels[rng.random(labels.shape) < missing] = np.nan
    solution = pd.DataFrame(labels, columns=list(COLUMNS))
    solution.insert(0, "study_id", ids)
    probs = rng.dirichlet((1.0, 0.7, 0.5), n_studies * 25)
    submission = pd.DataFrame(probs, columns=list(SEVERITY_COLUMNS))
    submission.insert(0, "row_id", [f"{i}_{c}" for i in ids for c in COLUMNS])
    return solution, submission.sample(frac=1.0, random_state=seed).reset_index(drop=True)


def sklearn_score(solution, submission):
    """The competition's construction, row by row, with scikit-learn."""
    long = solution.melt(id_vars="study_id", var_name="column", value_name="label")
    long["row_id"] = long["study_id"].astype(str) + "_" + long["column"]
    long = long.merge(submission, on="row_id")
    columns = list(SEVERITY_COLUMNS)
    long[columns] = long[columns].div(long[columns].sum(axis=1), axis=0)
    long["weight"] = long["label"].map(WEIGHT).astype(float).fillna(0.0)
    terms = []
    for group in ("spinal", "foraminal", "subarticular"):
        rows = long[long["column"].str.contains(group) & long["label"].notna()]
        truth = rows["label"].map({name: k for k, name in enumerate(SEVERITIES)}).astype(int)
        terms.append(
            sklearn.metrics.log_loss(truth, rows[columns].to_numpy(), sample_weight=rows["weight"], labels=[0, 1, 2])
        )
    spinal = long[long["column"].str.contains("spinal")]
    by_study = spinal.assign(is_severe=spinal["label"] == "Severe").groupby("study_id")
    terms.append(
        sklearn.metrics.log_loss(
            by_study["is_severe"].max(),
            by_study["severe"].max(),
            sample_weight=by_study["weight"].max(),
            labels=[False, True],
        )
    )
    return Score(float(np.mean(terms)), *(float(t) for t in terms))


def assert_close(result, expected):
    for name in Score.__slots__:
        assert abs(getattr(result, name) - getattr(expected, name)) < 1e-9, name


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("missing", [0.0, 0.05, 0.6])
def test_score_equals_scikit_learn(seed, missing):
    solution, submission = random_frames(seed, missing=missing)
    assert_close(score(solution, submission), sklearn_score(solution, submission))


def test_a_study_without_any_canal_label_does_not_count():
    solution, submission = random_frames(1)
    solution.loc[3, list(COLUMNS[:5])] = np.nan
    solution.loc[4, list(COLUMNS)] = np.nan
    assert_close(score(solution, submission), sklearn_score(solution, submission))


def test_certain_and_wrong_is_clipped_as_scikit_learn_does():
    solution, submission = random_frames(2, n_studies=6)
    submission[list(SEVERITY_COLUMNS)] = [[1.0, 0.0, 0.0]] * len(submission)
    result = score(solution, submission)
    assert np.isfinite(result.total)
    assert_close(result, sklearn_score(solution, submission))


def test_rows_are_divided_by_their_sum():
    solution, submission = random_frames(3)
    scaled = submission.copy()
    scaled[list(SEVERITY_COLUMNS)] *= np.random.default_rng(0).uniform(0.1, 9.0, (len(scaled), 1))
    assert_close(score(solution, scaled), score(solution, submission))


def test_columns_and_studies_may_come_in_any_order_and_frames_are_left_alone():
    solution, submission = random_frames(4)
    before = solution.copy(), submission.copy()
    expected = score(solution, submission)
    shuffled = solution[list(reversed(solution.columns))].iloc[::-1].assign(fold=0)
    assert_close(score(shuffled, submission[["severe", "row_id", "moderate", "normal_mild"]]), expected)
    pd.testing.assert_frame_equal(solution, before[0])
    pd.testing.assert_frame_equal(submission, before[1])


def test_integers_are_probabilities_too():
    solution, submission = random_frames(5)
    submission[list(SEVERITY_COLUMNS)] = [[1, 1, 2]] * len(submission)
    assert_close(score(solution, submission), sklearn_score(solution, submission))


def test_uniform_rows_score_the_log_of_three():
    solution, _ = random_frames(6, missing=0.0)
    result = score(solution, constant_submission(list(solution["study_id"]), uniform_table()))
    assert abs(result.spinal - np.log(3)) < 1e-12
    assert abs(result.foraminal - np.log(3)) < 1e-12


def test_no_constant_beats_the_weighted_prior():
    solution, _ = random_frames(7, n_studies=300)
    ids = list(solution["study_id"])
    prior = prior_table(solution)
    best = score(solution, constant_submission(ids, prior))
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = {c: (r := p * rng.uniform(0.7, 1.4, 3)) / r.sum() for c, p in prior.items()}
        result = score(solution, constant_submission(ids, other))
        assert result.foraminal > best.foraminal
        assert result.subarticular > best.subarticular


def test_prior_is_the_weighted_frequency_of_each_column():
    solution, _ = random_frames(8, n_studies=200)
    prior = prior_table(solution)
    assert list(prior) == list(COLUMNS)
    for column, row in prior.items():
        counts = solution[column].value_counts()
        weighted = np.array([counts[s] * WEIGHT[s] for s in SEVERITIES], dtype=float)
        np.testing.assert_allclose(row, weighted / weighted.sum(), atol=1e-12)


def test_prior_never_says_impossible():
    solution, _ = random_frames(9, p=(1.0, 0.0, 0.0))
    solution[COLUMNS[0]] = np.nan
    for row in prior_table(solution).values():
        assert (row > 0).all()
        assert abs(row.sum() - 1.0) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns="moderate"), r"submission: moderate missing, expected row_id, normal_mild, moderate"),
        (lambda s: s.assign(extra=1), r"submission: found columns \S+, .*extra, expected row_id, .* alone"),
        (lambda s: s.iloc[2:], r"submission: \S+ and 1 more missing, found 998 rows, expected 1000"),
        (lambda s: pd.concat([s, s.iloc[:1]]), r"submission: \S+ found twice, expected each row once"),
        (
            lambda s: pd.concat([s, s.iloc[:1].assign(row_id="7_x")]),
            r"submission: unexpected rows 7_x, found 1001, expected 1000",
        ),
        (lambda s: s.assign(severe=np.nan), r"submission: row \S+: severe is nan, expected finite"),
        (lambda s: s.assign(severe=np.inf), r"submission: row \S+: severe is inf, expected finite"),
        (lambda s: s.assign(moderate=-0.1), r"submission: row \S+: moderate is -0\.1, expected 0 or more"),
        (lambda s: s.assign(moderate="high"), r"submission: found text among the probabilities, expected numbers"),
        (
            lambda s: s.assign(normal_mild=0, moderate=0, severe=0),
            r"submission: row \S+: normal_mild is 0\.0, expected a row sum above 0",
        ),
    ],
)
def test_a_wrong_submission_is_refused_in_one_line(change, message):
    solution, submission = random_frames(10)
    with pytest.raises(CohortError, match=message) as caught:
        score(solution, change(submission))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns=COLUMNS[3]), r"solution: spinal_canal_stenosis_l4_l5 missing, expected study_id and"),
        (lambda s: pd.concat([s, s.iloc[:1]]), r"solution: study \d+ appears twice, expected once"),
        (lambda s: s.assign(study_id="abc"), r"solution: found a study_id that is no number, expected integers"),
        (
            lambda s: s.assign(**{COLUMNS[7]: "severe"}),
            r"solution: study \d+ left_neural_foraminal_narrowing_l3_l4: found 'severe', expected one of Normal/Mild",
        ),
        (lambda s: s.assign(**{c: np.nan for c in COLUMNS[:5]}), r"solution: found no spinal label, expected at least"),
    ],
)
def test_a_wrong_solution_is_refused_in_one_line(change, message):
    solution, submission = random_frames(11)
    with pytest.raises(CohortError, match=message):
        score(change(solution), submission)


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(CohortError, match=r"nothing\.csv: cannot be read \(No such file or directory\), expected the"):
        read_table(tmp_path / "nothing.csv", "the solution")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(CohortError, match=r"empty\.csv: not a CSV table"):
        read_table(tmp_path / "empty.csv", "the solution")
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(CohortError, match=r"binary\.csv: not a CSV table"):
        read_table(tmp_path / "binary.csv", "the solution")
