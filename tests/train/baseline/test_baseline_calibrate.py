"""One temperature a condition, chosen on studies that the networks have not seen."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar_train.baseline.calibrate import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    HeldOut,
    choose_temperature,
    loss,
    temperatures,
)

PRIOR = np.array([0.6, 0.25, 0.15])
EVEN = (1 / 3, 1 / 3, 1 / 3)


def held_out(fold, confidence, n=1500, condition="spinal_canal_stenosis", seed=0):
    """Studies of two slices whose labels follow the logits, which are then made overconfident."""
    rng = np.random.default_rng([seed, fold])
    logits = rng.normal(0, 1.5, (n, 3))
    odds = np.exp(logits) * PRIOR / [1, 2, 4]  # plain frequencies: the metric's weights divided out
    labels = np.array([rng.choice(3, p=row / row.sum()) for row in odds])
    study_index = np.repeat(np.arange(n), 2)
    return HeldOut(condition, fold, np.repeat(logits * confidence, 2, axis=0), study_index, labels, PRIOR, EVEN)


@pytest.mark.parametrize("confidence", [1.0, 4.0, 15.0])
def test_the_temperature_undoes_what_made_the_logits_overconfident(confidence):
    parts = [held_out(0, confidence)]
    temperature = choose_temperature(parts)
    assert temperature == pytest.approx(confidence, rel=0.15)
    assert (
        loss(parts, temperature)
        <= min(loss(parts, t) for t in np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 25)) + 1e-6
    )


def test_networks_that_know_nothing_leave_the_prior():
    part = held_out(0, 1.0)
    rng = np.random.default_rng(1)
    noise = replace(part, logits=20 * rng.normal(size=part.logits.shape))
    temperature = choose_temperature([noise])
    assert temperature > 0.8 * MAX_TEMPERATURE
    assert np.abs(noise.probs(temperature) - PRIOR).mean() < 0.1
    assert loss([noise], temperature) < loss([noise], 1.0)


def test_a_folds_own_labels_never_choose_its_temperature():
    parts = [held_out(0, 2.0), held_out(1, 3.0), held_out(2, 8.0)]
    before = temperatures(parts)["spinal_canal_stenosis"]
    shuffled = replace(parts[0], labels=np.random.default_rng(3).permutation(parts[0].labels))
    after = temperatures([shuffled, *parts[1:]])["spinal_canal_stenosis"]
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
    assert after["all"] != before["all"]
    assert 3.0 < before["0"] < 8.0


def test_conditions_are_chosen_apart_and_missing_labels_do_not_count():
    a, b = held_out(0, 2.0), held_out(0, 6.0, condition="left_subarticular_stenosis")
    chosen = temperatures([a, b])
    assert chosen["spinal_canal_stenosis"]["all"] == pytest.approx(2.0, rel=0.15)
    assert chosen["left_subarticular_stenosis"]["all"] == pytest.approx(6.0, rel=0.15)
    assert chosen["spinal_canal_stenosis"]["0"] == 1.0  # no other fold to ask
    unlabelled = replace(a, labels=np.where(np.arange(len(a.labels)) % 2, -1, a.labels))
    assert loss([unlabelled], 2.0) == pytest.approx(loss([a], 2.0), rel=0.1)
    assert choose_temperature([replace(a, labels=np.full_like(a.labels, -1))]) == 1.0


def test_the_mean_over_slices_is_the_study():
    part = HeldOut("x", 0, np.array([[0.0, 0, 0], [4.0, 0, 0], [0, 4.0, 0]]), np.array([0, 1, 1]), np.array([0, 1]),
                   PRIOR, EVEN)  # fmt: skip
    probs = part.probs(2.0)
    assert probs[0] == pytest.approx(PRIOR)
    each = np.exp([[2.0, 0, 0], [0, 2.0, 0]]) * PRIOR
    assert probs[1] == pytest.approx((each / each.sum(axis=1, keepdims=True)).mean(axis=0))
