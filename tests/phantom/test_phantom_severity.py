"""Labels follow measured narrowing, at the competition's frequencies, with a known floor."""

from functools import lru_cache

import numpy as np
import pytest

from lumbar_phantom import disease, pitfalls, rates, severity
from lumbar_phantom import tissue_labels as ts
from lumbar_phantom.patients import make_case
from lumbar_phantom.study import Request, study_case
from phantom_helpers import built

N = 500


@lru_cache(maxsize=1)
def cohort():
    return [make_case(4, i) for i in range(N)]


def test_frequencies_match_the_table_within_sampling_error():
    grades = np.stack([c.grades for c in cohort()])
    for members in ([0], [1, 2], [3, 4]):
        for k in range(5):
            for grade in (1, 2):
                want = rates.TARGET_RATES[members[0]][k][grade - 1]
                got = (grades[:, members, k] == grade).mean()
                # Sides of one patient are not independent: count patients, not labels
                assert abs(got - want) < 3.5 * np.sqrt(want * (1 - want) / N) + 0.006


def test_share_of_studies_with_a_severe_canal():
    severe = np.mean([(c.grades[0] == 2).any() for c in cohort()])
    assert 0.12 < severe < 0.25  # 18.5 % in the competition


def test_floor_is_a_third_of_the_prior():
    narrowing, grades = np.stack([c.narrowing for c in cohort()]), np.stack([c.grades for c in cohort()])
    best, prior = severity.oracle_score(narrowing, grades)
    assert 0.30 <= best / prior <= 0.40


def test_truth_is_worth_more_than_noisy_truth():
    narrowing = np.stack([c.narrowing for c in cohort()])
    grades = np.stack([c.grades for c in cohort()])
    weights = np.array([1.0, 2.0, 4.0])
    best = severity.score(grades, severity.oracle_probs(narrowing) * weights)
    blurred = narrowing + np.random.default_rng(0).normal(0, 0.2, narrowing.shape)
    assert severity.score(grades, severity.oracle_probs(blurred) * weights + 0.02) > best


def test_neighbours_and_sides_are_correlated():
    m = np.stack([c.narrowing for c in cohort()])
    assert np.corrcoef(m[:, 1, 3], m[:, 2, 3])[0, 1] > 0.3
    assert np.corrcoef(m[:, 0, 2], m[:, 0, 3])[0, 1] > 0.15
    assert np.corrcoef(m[:, 0, 3], m[:, 3, 3])[0, 1] > 0.3


def test_measuring_again_from_the_same_geometry_agrees():
    case = make_case(9, 3)
    again = make_case(9, 3)
    np.testing.assert_array_equal(case.narrowing, again.narrowing)
    healthy = make_case(9, 3).patient
    reference = disease.measure_sizes(healthy)
    assert np.all(reference.canal > 0)
    assert case.narrowing.min() >= 0
    assert case.narrowing.max() <= 1


def test_labels_measured_from_the_drawn_volume_agree():
    """Counting sac voxels in the volume ranks the levels of patients as the analytic narrowing does."""
    drawn, measured = [], []
    for index in range(3):
        case, body = built(index)
        sac = np.isin(body.fine, (ts.CSF, ts.CSF_FLOW, ts.ROOT, ts.CORD))
        area = sac.sum((1, 2)) * 0.75**2
        z = body.fine_z + 0.75 * np.arange(len(area))
        for k in range(5):
            near = np.abs(z - case.points[0, k, 2]) < 5
            drawn.append(area[near].min())
            measured.append(disease.measure_sizes(case.patient).canal[k])
    # Axial cuts of a tilted sac are a little larger than cuts across it; L5/S1 most
    assert np.corrcoef(drawn, measured)[0, 1] > 0.85


@pytest.mark.parametrize("mode", [("real",), ("none",)])
def test_missing_labels_only_where_asked(mode):
    cases = [study_case(Request("x", "train", 6, i, mode))[0] for i in range(60)]
    empty = sum(int((c.labels < 0).any()) for c in cases)
    assert empty == 0 if mode == ("none",) else empty <= 20


def test_real_rates_of_missing_labels():
    share = [(severity.omit_labels(np.random.default_rng(i), np.zeros((5, 5), int)) < 0).sum() for i in range(600)]
    assert 2.0 < np.mean(share) < 4.5  # 572 empty labels in 185 studies


def test_pitfall_rates_are_the_real_ones():
    drawn = [pitfalls.draw(1, i, ("real",)) for i in range(3000)]
    for name in ("reversed_order", "several_axial", "partial_axial", "non_square"):
        assert np.mean([name in d for d in drawn]) == pytest.approx(pitfalls.RATES[name], abs=0.03)
