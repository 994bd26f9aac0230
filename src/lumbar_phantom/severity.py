"""Turns measured narrowing into a reader's grades; also the score that can be beaten by luck only."""

from __future__ import annotations

import math

import numpy as np

from lumbar.labels import SEVERITY_WEIGHTS
from lumbar.metric import score_arrays
from lumbar_phantom import rates

GROUP_OF_CONDITION = (0, 1, 1, 2, 2)
_WEIGHTS = np.array(SEVERITY_WEIGHTS)


def cuts() -> np.ndarray:
    """Grading thresholds, (5 conditions, 5 levels, 2): narrowing from which a reader says moderate, severe."""
    return np.asarray(rates.CUTS)[list(GROUP_OF_CONDITION), :, :]


def simulate_reader(rng: np.random.Generator, narrowing: np.ndarray) -> np.ndarray:
    """One reader's grades 0, 1, 2 of (5, 5) narrowings: the truth, the reader's own bias and a random error, summed."""
    bias = rng.standard_normal() * math.sqrt(rates.READER_SHARE)
    random_error = rng.standard_normal((5, 5)) * math.sqrt(1 - rates.READER_SHARE)
    reading = narrowing + rates.NOISE * (bias + random_error)
    return np.asarray((reading[..., None] >= cuts()).sum(-1))


def omit_labels(rng: np.random.Generator, grades: np.ndarray) -> np.ndarray:
    """Grades of a study with missing labels: -1 where one is missing, at the competition's rates in such studies."""
    out = grades.copy()
    # Relative frequency by level: nearly all missing labels are at L1/L2, which axial series often leave out
    level = np.array([4.2, 0.5, 0.15, 0.08, 0.07])
    for group, members in (("spinal", [0]), ("foraminal", [1, 2]), ("subarticular", [3, 4])):
        share = rates.MISSING[group] * 1975 / 185
        for k in range(5):
            if rng.random() < min(0.97, share * level[k]):
                out[members, k] = -1
    return out


def oracle_probs(narrowing: np.ndarray) -> np.ndarray:
    """Probabilities (..., 5, 5, 3) of the grades, given the true narrowing (..., 5, 5) and the noise of readers."""
    upper_tail = np.vectorize(lambda z: 0.5 * math.erfc(z / math.sqrt(2)))
    above = upper_tail((cuts() - narrowing[..., None]) / rates.NOISE)
    return np.stack([1 - above[..., 0], above[..., 0] - above[..., 1], above[..., 1]], -1)


def score(grades: np.ndarray, probs: np.ndarray) -> float:
    """The competition's metric (lower is better).

    Args:
        grades: (n, 5, 5), -1 where a label is missing.
        probs: (n, 5, 5, 3) of any positive sum.
    """
    rows = probs / probs.sum(-1, keepdims=True)
    return score_arrays(grades.reshape(len(grades), 25).astype(np.int64), rows.reshape(len(grades), 25, 3)).total


def prior_probs(grades: np.ndarray) -> np.ndarray:
    """Frequencies of the grades per column, weighted 1/2/4 as the metric does: (5, 5, 3)."""
    counts = np.stack([(grades == g).sum(0) * _WEIGHTS[g] for g in range(3)], -1) + 1e-3
    return np.asarray(counts / counts.sum(-1, keepdims=True))


def oracle_score(narrowing: np.ndarray, grades: np.ndarray) -> tuple[float, float]:
    """Two scores on the same studies: of an oracle that knows the true narrowing (the floor), and of the prior.

    Args:
        narrowing: (n, 5, 5), 0..1.
        grades: (n, 5, 5), -1 where a label is missing.
    """
    best = oracle_probs(narrowing) * _WEIGHTS
    return score(grades, best), score(grades, np.broadcast_to(prior_probs(grades), best.shape))
