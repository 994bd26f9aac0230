"""How probably a point lies where a reader would mark it, from the height of its peak in the heatmap.

The height itself is no probability: a right point of a faint image may have 0.3. A bundle may hold two numbers for each
kind of point, fitted on phantoms that its weights have not seen (``benchmarks/calibrate_points.py``), that turn it into
the probability that the point lies within ``NEAR_MM`` of the true one; without them points have none. The grades rest
on the heights alone, so these numbers change none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lumbar.stages.points import Localisation

NEAR_MM = 5.0
KINDS = ("canal", "foramen", "axial")  # canal and foraminal points of sagittal series; both points of an axial slice
_LEAST_HEIGHT = 1e-3  # heights are cut to this and to one minus it, so that the logit is finite


def logit(height: float) -> float:
    """The logarithm of the odds of a height in 0..1."""
    height = min(max(height, _LEAST_HEIGHT), 1.0 - _LEAST_HEIGHT)
    return math.log(height / (1.0 - height))


def probability(height: float, numbers: Sequence[float], numbering: float = 1.0) -> float:
    """The probability that a point lies near the true one.

    Args:
        height: of the heatmap's peak, 0..1.
        numbers: offset and slope of its kind.
        numbering: the probability that its level is counted rightly.
    """
    offset, slope = numbers
    score = offset + slope * logit(height)
    return numbering / (1.0 + math.exp(-min(max(score, -50.0), 50.0)))


def give_probabilities(localisation: Localisation, numbers: Mapping[str, Sequence[float]]) -> None:
    """Set the probability of all points of a study.

    Args:
        localisation: has the points, and how sure the numbering is, where the bundle tells it.
        numbers: offset and slope of each of ``KINDS``; empty where the bundle does not tell them.
    """
    if not numbers:
        return
    numbering = 1.0 if localisation.numbering is None else localisation.numbering.confidence
    for k, point in enumerate(localisation.sagittal_points):
        kind = "canal" if point.side is None else "foramen"
        chance = probability(point.confidence, numbers[kind], numbering)
        localisation.sagittal_points[k] = replace(point, probability=chance)
    for k, level in enumerate(localisation.axial_levels):
        chance = probability(level.confidence, numbers["axial"], numbering)
        localisation.axial_levels[k] = replace(level, probability=chance)
