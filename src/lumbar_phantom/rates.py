"""Frequencies that the competition's training set shows, and the constants derived from them.

CUTS and NOISE come from `python -m lumbar_phantom.calibrate`; run it again after any change of anatomy or disease.
"""

from __future__ import annotations

# Narrowing at which the *middle* level of a condition would be read as moderate and as severe.
MODERATE_CUT, SEVERE_CUT = 0.38, 0.62

# (moderate, severe) share per condition and level, L1/2 to L5/S1. Severe shares and the totals per condition are the
# competition's; how the moderate ones spread over the levels is not published and follows the severe ones, flattened.
_CANAL = ((0.025, 0.011), (0.055, 0.027), (0.105, 0.062), (0.155, 0.129), (0.033, 0.010))
_FORAMEN = ((0.015, 0.001), (0.070, 0.006), (0.175, 0.020), (0.320, 0.071), (0.328, 0.104))
_RECESS = ((0.070, 0.015), (0.140, 0.044), (0.250, 0.098), (0.315, 0.234), (0.180, 0.075))
TARGET_RATES = (_CANAL, _FORAMEN, _FORAMEN, _RECESS, _RECESS)  # in the order of labels.CONDITIONS

# Shares of missing labels: 572 of 49,375 over 185 of 1,975 studies, worst in the subarticular L1/2 column.
MISSING = {"spinal": 5 / 9875, "foraminal": 50 / 19750, "subarticular": 517 / 19750}

# Standard deviation of readings around the true narrowing, and the share of its variance that is a reader's own bias,
# the same for a whole study.
NOISE, READER_SHARE = 0.095, 0.35

# Grading thresholds (moderate, severe) per condition group (canal, foramen, recess) and level.
CUTS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0.412, 0.660), (0.390, 0.609), (0.398, 0.627), (0.386, 0.596), (0.389, 0.635)),
    ((0.613, 0.818), (0.499, 0.708), (0.441, 0.687), (0.422, 0.655), (0.399, 0.640)),
    ((0.475, 0.824), (0.468, 0.765), (0.466, 0.778), (0.463, 0.736), (0.487, 0.712)),
)
