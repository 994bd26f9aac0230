"""Aggregation: the logits of every classifier → 25 × 3 probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.labels import COLUMNS, LEVELS, SIDES
from lumbar.models.inference import forward
from lumbar.stages.grade_calibration import Numbers, calibrated
from lumbar.stages.numbering import is_in_doubt
from lumbar.stages.points import Localisation


def prior_array(prior: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """The manifest's prior as (25, 3) in the order of ``COLUMNS``; rows sum to 1."""
    table = np.array([prior[column] for column in COLUMNS], dtype=np.float64)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def level_confidence(localisation: Localisation) -> NDArray[np.float32]:
    """The localiser's confidence (5 levels, 4) in 0..1: canal, left foramen, right foramen, axial slice; 0: absent."""
    out = np.zeros((len(LEVELS), 4), np.float32)
    for row, level in enumerate(LEVELS):
        for kind, side in enumerate((None, *SIDES)):
            points = [p.confidence for p in localisation.sagittal_points if p.level == level and p.side == side]
            out[row, kind] = max(points, default=0.0)
        axial = localisation.axial(level)
        out[row, 3] = axial.confidence if axial is not None else 0.0
    return np.clip(out, 0.0, 1.0)


def aggregate(
    logits: NDArray[np.float32],
    mask: NDArray[np.bool_],
    prior: NDArray[np.float64],
    networks: Sequence[nn.Module],
    confidence: NDArray[np.float32] | None = None,
    calibration: Numbers | None = None,
) -> NDArray[np.float64]:
    """Run the aggregators: probabilities (25, 3), averaged over networks.

    Args:
        logits: (M, 5 conditions, 5 levels, 3) of M classifiers.
        mask: (M, 5, 5), which of them rest on images. A column that no classifier saw gets exactly its prior.
        prior: (25, 3), rows sum to 1.
        networks: the aggregators, one for each fold.
        confidence: ``level_confidence``, for the networks whose configuration asks for it.
        calibration: the bundle's ``grade_calibration``, applied to the average (``lumbar.stages.grade_calibration``).
    """
    log_prior = torch.from_numpy(np.log(np.clip(prior, 1e-6, 1.0)).astype(np.float32)).view(5, 5, 3)
    total = np.zeros((25, 3))
    for network in networks:
        inputs = [torch.from_numpy(logits)[None], torch.from_numpy(mask)[None], log_prior]
        if confidence is not None and getattr(getattr(network, "config", None), "confidence", False):
            inputs.append(torch.from_numpy(confidence)[None])
        out = forward(network, *inputs)
        total += torch.softmax(out.double(), dim=-1).numpy().reshape(25, 3)
    probs = total / len(networks)
    is_seen = mask.any(axis=0).reshape(25)
    probs[~is_seen] = prior[~is_seen]
    probs = np.asarray(probs / probs.sum(axis=1, keepdims=True))
    return calibrated(probs, prior, is_seen, calibration or {})


def mixed_readings(
    answer: NDArray[np.float64],
    localisation: Localisation,
    prior: NDArray[np.float64],
    answer_of: Callable[[Localisation], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """The answer (25, 3), mixed with those of the other readings of the numbering where it is in doubt.

    Each reading counts with its probability; that of levels which lie elsewhere goes to the prior, also where no other
    reading is likely enough to be looked at.

    Args:
        answer: (25, 3) of the localisation as it was read.
        localisation: with its other readings; where its numbering is not in doubt the answer stays as it is.
        prior: (25, 3).
        answer_of: the answer to another reading.
    """
    numbering = localisation.numbering
    if not is_in_doubt(numbering):
        return answer
    shares = [numbering.confidence, numbering.elsewhere, *(share for share, _ in localisation.readings)]
    answers = [answer, prior, *(answer_of(other) for _, other in localisation.readings)]
    return np.asarray(np.average(answers, axis=0, weights=shares))
