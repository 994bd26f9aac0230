"""Out-of-fold logits of three classifiers that see latent severities through noise: what the aggregator is tuned on.

Severities of neighbouring levels and of one level's conditions go together, as they do in patients; labels follow the
competition's frequencies. Each classifier is surer than it is right, by condition, sees some conditions better than
others, and misses some studies; what it gets wrong at a level, it gets wrong in part at that level's other conditions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CONDITIONS, LEVELS, MODELS = 5, 5, 3
# Shares of moderate or worse, and of severe, by condition group and level: the competition's, rounded.
WORSE = {0: (0.04, 0.08, 0.14, 0.26, 0.05), 1: (0.03, 0.09, 0.18, 0.36, 0.45), 3: (0.1, 0.17, 0.29, 0.49, 0.32)}
SEVERE = {
    0: (0.011, 0.027, 0.062, 0.129, 0.01),
    1: (0.002, 0.006, 0.02, 0.071, 0.104),
    3: (0.015, 0.044, 0.098, 0.234, 0.075),
}
GROUP_OF = (0, 1, 1, 3, 3)
NOISE = np.array([[0.55, 0.6, 0.6, 9.0, 9.0], [9.0, 9.0, 9.0, 0.65, 0.65], [0.7, 0.9, 0.9, 0.75, 0.75]])  # 9: not seen
SEEN = NOISE < 5


def synthetic_logits(
    n: int, seed: int = 0, sureness: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int8], NDArray[np.float64]]:
    """Logits (n, 3, 5, 5, 3), mask (n, 3, 5, 5), labels (n, 25) with 2 % missing, prior (25, 3).

    ``sureness`` multiplies all logits.
    """
    rng = np.random.default_rng(seed)
    latent = _latent(n, rng)
    cuts = np.array([[_cuts(latent[:, c, k], c, k) for k in range(LEVELS)] for c in range(CONDITIONS)])  # (5, 5, 2)
    labels = (latent[..., None] > cuts).sum(-1).astype(np.int8)
    logits = np.zeros((n, MODELS, CONDITIONS, LEVELS, 3), np.float32)
    for m in range(MODELS):
        shared = rng.normal(size=(n, 1, LEVELS))
        own = rng.normal(size=(n, CONDITIONS, LEVELS))
        noise = NOISE[m][None, :, None]
        seen = latent + noise * (0.6 * shared + 0.8 * own)
        for c in range(CONDITIONS):
            sure = sureness * (1.9, 1.3, 1.3, 2.4, 2.4)[c] * (1.25 if m == 2 else 1.0)  # surer than it is right
            bias = (0.15, -0.1, 0.05)[m]
            for k in range(LEVELS):
                low, high = cuts[c, k]
                x = seen[:, c, k] + bias
                logits[:, m, c, k, 1] = sure * (x - low)
                logits[:, m, c, k, 2] = sure * (2 * x - low - high)
    mask = np.broadcast_to(SEEN[None, :, :, None], logits.shape[:-1]).copy()
    mask &= rng.random((n, MODELS, 1, 1)) > 0.02
    mask[:, 1:] &= rng.random((n, 1, 1, LEVELS)) > 0.05  # axial series that do not reach a level
    flat = labels.reshape(n, 25)
    flat[rng.random(flat.shape) < 0.02] = -1
    return logits * mask[..., None], mask, flat, _prior(flat)


def _latent(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Severities (n, 5, 5), of variance 1, correlated over levels, sides and conditions."""
    patient = rng.normal(size=(n, 1, 1))
    level = rng.normal(size=(n, 1, LEVELS))
    near = level.copy()
    near[..., 1:] += 0.5 * level[..., :-1]
    near[..., :-1] += 0.5 * level[..., 1:]
    own = rng.normal(size=(n, CONDITIONS, LEVELS))
    kind = rng.normal(size=(n, 3, LEVELS))[:, [0, 1, 1, 2, 2]]
    out = 0.5 * patient + 0.45 * near + 0.5 * kind + 0.45 * own
    return np.asarray(out / out.std())


def _cuts(values: NDArray[np.float64], condition: int, level: int) -> NDArray[np.float64]:
    group = GROUP_OF[condition]
    return np.quantile(values, [1 - WORSE[group][level], 1 - SEVERE[group][level]])


def _prior(labels: NDArray[np.int8]) -> NDArray[np.float64]:
    counts = np.stack([(labels == k).sum(axis=0) for k in range(3)], axis=1)
    weighted = np.maximum(counts, 0.1) * np.array([1.0, 2.0, 4.0])
    return np.asarray(weighted / weighted.sum(axis=1, keepdims=True))


def synthetic_confidence(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Confidence (n, 5, 4) that tells nothing."""
    return np.random.default_rng([seed, 1]).beta(8, 2, (n, 5, 4)).astype(np.float32)
