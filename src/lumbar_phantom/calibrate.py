"""Derives the grading thresholds in `rates` from many patients: ``python -m lumbar_phantom.calibrate --patients 6000``.

Prints CUTS such that narrowing plus reader noise exceeds them as often as TARGET_RATES says, and the floor score.
"""

from __future__ import annotations

import argparse

import numpy as np

from lumbar_phantom import rates, severity
from lumbar_phantom.patients import make_case
from lumbar_phantom.streams import stream


def derive(narrowing: np.ndarray, noise: float) -> np.ndarray:
    """Grading thresholds at which the noisy narrowings reach the target rates; both sides are pooled.

    Args:
        narrowing: (n, 5 conditions, 5 levels), 0..1.
        noise: standard deviation of a reader around the true narrowing.

    Returns:
        (3 groups, 5 levels, 2): narrowing from which a reader says moderate, severe.
    """
    reading = narrowing + noise * stream(0, 0, "calibrate").standard_normal(narrowing.shape)
    out = np.zeros((3, 5, 2))
    for group, members in enumerate(([0], [1, 2], [3, 4])):
        for k in range(5):
            moderate, severe = rates.TARGET_RATES[members[0]][k]
            pooled = reading[:, members, k].ravel()
            out[group, k] = np.quantile(pooled, (1 - moderate - severe, 1 - severe))
    return out


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=90210)
    parser.add_argument("--noise", type=float, default=rates.NOISE)
    options = parser.parse_args()
    narrowing = np.stack([make_case(options.seed, i).narrowing for i in range(options.patients)])
    cuts = derive(narrowing, options.noise)
    print("CUTS = (")
    for group in cuts:
        print("    (" + ", ".join(f"({a:.3f}, {b:.3f})" for a, b in group) + "),")
    print(")")
    rates.CUTS = tuple(tuple((float(a), float(b)) for a, b in group) for group in cuts)
    rates.NOISE = options.noise
    grades = np.stack([severity.simulate_reader(stream(options.seed, i, "reader"), m) for i, m in enumerate(narrowing)])
    best, prior = severity.oracle_score(narrowing, grades)
    print(f"floor {best:.3f}, prior {prior:.3f}, share {best / prior:.3f}")


if __name__ == "__main__":
    main()
