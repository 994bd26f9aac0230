"""How a run's out-of-fold answers choose temperature and share of the prior, and when they are kept."""

import json

import numpy as np
import pytest

from lumbar.labels import GROUPS
from lumbar.stages.grade_calibration import columns_of
from lumbar_train.evaluation.grade_calibration import Answers, decide, fit, held_back
from lumbar_train.evaluation.scoring import scores
from lumbar_train.stages.aggregate_folds import CALIBRATION, with_calibration

PRIOR = np.array([0.6, 0.25, 0.15])


def answers(n=300, sharpened=1.0, seed=0, n_parts=3):
    """Answers whose true probabilities are known, sharpened by a factor on their logarithms."""
    rng = np.random.default_rng(seed)
    # Labels are drawn so that, weighted 1/2/4 as the metric weighs them, these are the true frequencies
    weighted = np.stack([rng.dirichlet(4 * PRIOR, 25) for _ in range(n)])
    plain = weighted / np.array([1.0, 2.0, 4.0])
    plain /= plain.sum(axis=-1, keepdims=True)
    labels = (rng.random((n, 25, 1)) > plain.cumsum(axis=-1)).sum(axis=-1)
    said = weighted.clip(1e-6) ** sharpened
    said /= said.sum(axis=-1, keepdims=True)
    return Answers(labels, said, np.broadcast_to(PRIOR, said.shape), np.ones((n, 25), bool), np.arange(n) % n_parts)


@pytest.mark.parametrize("group", ["foraminal", "subarticular"])
def test_a_planted_temperature_comes_back(group):
    temperature, share = fit(answers(sharpened=2.0))[group]
    assert temperature == pytest.approx(2.0, rel=0.15)
    assert share < 0.1


def test_answers_as_sure_as_they_are_right_stay_nearly_as_they_are():
    one = answers()
    for group in ("foraminal", "subarticular"):
        temperature, share = fit(one)[group]
        assert (temperature, share) == (pytest.approx(1.0, abs=0.12), pytest.approx(0.0, abs=0.08))
    assert not decide(one).is_kept


def test_answers_that_are_too_sure_are_calibrated_and_score_better():
    one = answers(sharpened=3.0)
    decision = decide(one)
    assert decision.is_kept
    assert decision.gain.high < 0
    assert decision.after.value < decision.before.value
    assert "grades are calibrated" in decision.line
    calibrated = one.with_numbers(decision.numbers)
    assert scores(one.labels, calibrated)["total"].value < scores(one.labels, one.probs)["total"].value


def test_noise_is_pulled_to_the_prior():
    one = answers(200)
    noise = np.random.default_rng(5).dirichlet((0.3, 0.3, 0.3), (200, 25))
    numbers = fit(Answers(one.labels, noise, one.prior, one.is_seen, one.parts))
    assert all(share > 0.8 or temperature > 5 for temperature, share in numbers.values())


def test_no_part_has_a_say_in_its_own_calibration():
    one = answers(90, sharpened=2.0)
    before = held_back(one)
    own = one.parts == 1
    labels = one.labels.copy()
    labels[own] = 2 - labels[own]
    after = held_back(Answers(labels, one.probs, one.prior, one.is_seen, one.parts))
    np.testing.assert_array_equal(after[own], before[own])
    assert not np.array_equal(after[~own], before[~own])


def test_a_group_without_labels_and_one_part_alone_stay_as_they_are():
    one = answers(40, sharpened=2.0, n_parts=1)
    labels = one.labels.copy()
    labels[:, columns_of("foraminal")] = -1
    assert fit(Answers(labels, one.probs, one.prior, one.is_seen, one.parts))["foraminal"] == [1.0, 0.0]
    np.testing.assert_array_equal(held_back(one), one.probs)


def test_where_it_may_only_soften_no_answer_becomes_surer():
    one = answers(sharpened=0.5)
    assert fit(one)["foraminal"][0] < 0.7
    assert all(temperature >= 1.0 for temperature, _ in fit(one, 1.0).values())


def test_small_and_large_parts_weigh_alike():
    sharp, plain = answers(40, sharpened=3.0), answers(400, seed=1)
    names = ("labels", "probs", "prior", "is_seen")
    both = [np.concatenate([getattr(sharp, name), getattr(plain, name)]) for name in names]
    apart = fit(Answers(*both, np.repeat([0, 1], [40, 400])))
    together = fit(Answers(*both, np.zeros(440, int)))
    assert apart["foraminal"][0] > together["foraminal"][0] + 0.05


def test_only_what_was_kept_reaches_the_manifest_and_both_are_noted(tmp_path):
    manifest = {"recipe": "demo", "training": {"aggregator": 2.0}}
    assert with_calibration(manifest, tmp_path) == manifest  # a run of before it was made
    (tmp_path / "aggregator").mkdir()
    numbers = {group: [1.5, 0.1] for group in GROUPS}
    for is_kept in (False, True):
        decision = {"kept": is_kept, "numbers": numbers}
        (tmp_path / "aggregator" / CALIBRATION).write_text(json.dumps(decision))
        out = with_calibration(manifest, tmp_path)
        assert out["training"] == {"aggregator": 2.0, "grade_calibration": decision}
        assert out.get("grade_calibration") == (numbers if is_kept else None)
