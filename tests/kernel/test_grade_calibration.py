"""A bundle's calibration of its grades: what it does to an answer, and where it is applied."""

import numpy as np
import pytest
import torch

from kernel_untrained import CONFIGS
from lumbar.config import to_dict
from lumbar.labels import GROUPS
from lumbar.models import build, name_of
from lumbar.stages.aggregate import aggregate
from lumbar.stages.grade_calibration import calibrated, calibration_words, columns_of, softened

PRIOR = np.full((25, 3), [0.7, 0.2, 0.1])
SEEN = np.ones(25, bool)
NEUTRAL = {group: [1.0, 0.0] for group in GROUPS}


def probs_of(seed=0):
    return np.random.default_rng(seed).dirichlet((1, 1, 1), 25)


def test_without_numbers_the_answer_is_the_very_same():
    probs = probs_of()
    assert calibrated(probs, PRIOR, SEEN, {}) is probs


def test_temperature_one_and_no_prior_change_nothing():
    np.testing.assert_allclose(calibrated(probs_of(), PRIOR, SEEN, NEUTRAL), probs_of(), atol=1e-12)


def test_a_higher_temperature_is_less_sure_and_keeps_the_order():
    probs = probs_of()
    soft = calibrated(probs, PRIOR, SEEN, NEUTRAL | {"spinal": [3.0, 0.0]})
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    np.testing.assert_array_equal(soft[:5].argsort(axis=1), probs[:5].argsort(axis=1))
    assert np.all(soft[:5].max(axis=1) < probs[:5].max(axis=1))
    np.testing.assert_allclose(soft[5:], probs[5:], atol=1e-12)


def test_the_share_of_the_prior_bounds_every_answer_from_below():
    sure = np.tile([1.0, 0.0, 0.0], (25, 1))
    mixed = calibrated(sure, PRIOR, SEEN, NEUTRAL | {"foraminal": [1.0, 0.1]})
    np.testing.assert_allclose(mixed[columns_of("foraminal")], 0.9 * sure[:10] + 0.1 * PRIOR[:10], atol=1e-9)
    np.testing.assert_allclose(softened(sure, PRIOR, 1.0, 1.0), PRIOR)


def test_what_no_classifier_saw_stays_exactly_the_prior():
    seen = SEEN.copy()
    seen[[0, 24]] = False
    out = calibrated(np.where(seen[:, None], probs_of(), PRIOR), PRIOR, seen, {g: [4.0, 0.3] for g in GROUPS})
    np.testing.assert_array_equal(out[[0, 24]], PRIOR[[0, 24]])


def test_many_studies_at_once_are_each_alone():
    many = np.stack([probs_of(seed) for seed in range(3)])
    numbers = {"spinal": [2.0, 0.1], "foraminal": [0.7, 0.0], "subarticular": [1.5, 0.3]}
    together = calibrated(many, PRIOR, np.ones((3, 25), bool), numbers)
    for one, out in zip(many, together, strict=True):
        np.testing.assert_array_equal(calibrated(one, PRIOR, SEEN, numbers), out)


def test_every_column_belongs_to_one_group():
    assert sorted(column for group in GROUPS for column in columns_of(group)) == list(range(25))


def test_the_aggregators_answer_gets_it():
    torch.manual_seed(0)
    config = CONFIGS["aggregator"]
    network = build(name_of(config), to_dict(config)).eval()
    logits = np.random.default_rng(1).normal(0, 3, (3, 5, 5, 3)).astype(np.float32)
    mask = np.ones((3, 5, 5), bool)
    mask[:, 2, 3] = False
    plain = aggregate(logits, mask, PRIOR, [network])
    numbers = {group: [2.5, 0.2] for group in GROUPS}
    out = aggregate(logits, mask, PRIOR, [network], calibration=numbers)
    np.testing.assert_allclose(out, calibrated(plain, PRIOR, mask.any(axis=0).reshape(25), numbers))
    np.testing.assert_array_equal(out[13], plain[13])
    assert aggregate(logits, mask, PRIOR, [network], calibration={}) == pytest.approx(plain, abs=0)


def test_the_report_says_it_in_words():
    said = calibration_words({"spinal": [1.4, 0.06], "foraminal": [1.0, 0.0], "subarticular": [2.0, 0.15]})
    assert "spinal at temperature 1.40 with 6 % of the prior" in said
    assert calibration_words({}) == ""
