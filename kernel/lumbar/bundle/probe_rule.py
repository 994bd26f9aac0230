"""When an output still is the one that was recorded: the rule of all probes."""

from __future__ import annotations

from collections.abc import Sequence

PROBE_VALUES = 24  # output values that a probe keeps
PROBE_TOLERANCE = 0.02  # as a share of 1 + |expected|: allows for half precision on a GPU, not for a changed layer


def differing(values: Sequence[float], expected: Sequence[float], tolerance: float) -> str:
    """The first value that differs from the recorded one, in words; empty where none does."""
    if len(values) != len(expected):
        return f"{len(values)} values, expected {len(expected)}"
    for value, wanted in zip(values, expected, strict=True):
        if not abs(value - wanted) <= tolerance * (1 + abs(wanted)):
            return f"{value:.4f}, expected {wanted:.4f}"
    return ""
