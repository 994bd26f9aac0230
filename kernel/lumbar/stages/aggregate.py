"""Aggregation: every model's logits → 25 × 3 probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.inference import forward
from lumbar.labels import COLUMNS


def prior_array(prior: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """The manifest's prior as (25, 3) in the order of ``COLUMNS``; rows sum to 1."""
    table = np.array([prior[column] for column in COLUMNS], dtype=np.float64)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def aggregate(
    logits: NDArray[np.float32], mask: NDArray[np.bool_], prior: NDArray[np.float64], networks: Sequence[nn.Module]
) -> NDArray[np.float64]:
    """Probabilities (25, 3) from logits (M, 5, 5, 3) and mask (M, 5, 5), averaged over networks.

    A column that no model saw gets exactly its prior.
    """
    log_prior = torch.from_numpy(np.log(np.clip(prior, 1e-6, 1.0)).astype(np.float32)).view(5, 5, 3)
    total = np.zeros((25, 3))
    for network in networks:
        out = forward(network, torch.from_numpy(logits)[None], torch.from_numpy(mask)[None], log_prior)
        total += torch.softmax(out.double(), dim=-1).numpy().reshape(25, 3)
    probs = total / len(networks)
    unseen = ~mask.any(axis=0).reshape(25)
    probs[unseen] = prior[unseen]
    return np.asarray(probs / probs.sum(axis=1, keepdims=True))
