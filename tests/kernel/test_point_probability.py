"""The probability that a point lies near the true one, and where it is said."""

import numpy as np
import pytest

from lumbar.chains.contract import Mark
from lumbar.output.report_study import _cross
from lumbar.stages.point_probability import KINDS, give_probabilities, probability
from lumbar.stages.points import AxialLevel, Localisation, Numbering, SagittalPoint

NUMBERS = {"canal": [0.0, 1.0], "foramen": [2.0, 1.0], "axial": [-1.0, 0.5]}


def localisation(**more):
    points = [
        SagittalPoint("3", "l4_l5", side, 12, 80.0, 90.0, (0.0, 1.0, 2.0), 0.3, description="Sagittal T1")
        for side in (None, "left")
    ]
    axial = AxialLevel("4", "l4_l5", 20, 0.5, (180.0, 200.0), (120.0, 200.0), confidence=0.3)
    return Localisation(sagittal_points=points, axial_levels=[axial], **more)


def test_with_offset_zero_and_slope_one_the_height_is_the_probability():
    for height in (0.01, 0.3, 0.9):
        assert probability(height, [0.0, 1.0]) == pytest.approx(height)


def test_it_grows_with_the_height_and_stays_between_zero_and_one():
    chances = [probability(height, [3.0, 1.5]) for height in (0.0, 1e-9, 0.1, 0.5, 0.9, 1.0)]
    assert np.all(np.diff(chances) >= 0)
    assert 0.0 < chances[0] < chances[-1] < 1.0
    assert probability(1.0, [100.0, 100.0]) <= 1.0


def test_each_kind_has_its_own_numbers_and_all_wait_on_the_numbering():
    place = localisation(numbering=Numbering(0.5, 0.3, 0.1, 0.1))
    give_probabilities(place, NUMBERS)
    canal, foramen = place.sagittal_points
    assert canal.probability == pytest.approx(0.5 * 0.3)
    assert foramen.probability == pytest.approx(0.5 * probability(0.3, [2.0, 1.0]))
    assert place.axial_levels[0].probability == pytest.approx(0.5 * probability(0.3, [-1.0, 0.5]))
    assert set(NUMBERS) == set(KINDS)


def test_a_bundle_without_the_numbers_says_nothing():
    place = localisation()
    give_probabilities(place, {})
    assert [point.probability for point in place.sagittal_points] == [None, None]
    assert "probability" not in place.sagittal_points[0].record()
    assert "probability" not in place.axial_levels[0].record()


def test_the_record_has_height_and_probability():
    place = localisation()
    give_probabilities(place, NUMBERS)
    entry = place.sagittal_points[0].record()
    assert (entry["confidence"], entry["probability"]) == (0.3, 0.3)
    assert place.axial_levels[0].record()["probability"] == round(probability(0.3, [-1.0, 0.5]), 4)


def test_the_report_says_the_probability_where_there_is_one():
    told = Mark("l4_l5", None, 1.0, 2.0, confidence=0.3, probability=0.94)
    untold = Mark("l4_l5", None, 1.0, 2.0, confidence=0.3)
    assert _cross(told)["text"] == "L4/L5; within 5 mm of the true point with 94%"
    assert "no probability" in _cross(untold)["text"]
