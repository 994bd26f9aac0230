"""Labels that networks which never saw their study contradict: left out of one second training of the classifiers.

Other teams' best single step on the competition's noisy labels. Nothing is ever scored on changed labels: the doubt
concerns training alone, and the tables of a cohort stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.labels import COLUMNS, SEVERITIES
from lumbar_train.data.usable import write_doubt_counts
from lumbar_train.outputs.store import read_frame, read_logits, write_frame

FOLDER = "denoise"
STEP = "denoise"
FIRST = "-first"  # ends the names of the classifiers' first round


@dataclass(frozen=True)
class DenoiseConfig:
    """A label is doubted if its out-of-fold probability is lower than ``below``; of each severity's labels the least
    probable ``most`` at the most.
    """

    below: float = 0.03
    most: float = 0.03


def doubted(labels: NDArray[np.int8], probs: NDArray[np.float64], config: DenoiseConfig) -> NDArray[np.bool_]:
    """Which labels (N, 25) are doubted, by out-of-fold probabilities (N, 25, 3); NaN there is no doubt."""
    own = np.take_along_axis(probs, np.maximum(labels, 0)[..., None].astype(np.int64), axis=-1)[..., 0]
    out = np.zeros(labels.shape, bool)
    for severity in range(len(SEVERITIES)):
        is_label = labels == severity
        is_low = is_label & (np.nan_to_num(own, nan=1.0) < config.below)
        most = int(config.most * is_label.sum())
        rows = np.flatnonzero(is_low)
        out.flat[rows[np.argsort(own.flat[rows], kind="stable")[:most]]] = True
    return out


def first_round_probs(run: Path, stages: Sequence[str], study_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean out-of-fold probabilities (N, 25, 3) over the classifiers that saw a target; NaN where none did."""
    total, count = np.zeros((len(study_ids), 5, 5, 3)), np.zeros((len(study_ids), 5, 5, 1))
    for stage in stages:
        logits, mask = read_logits(run / f"{stage}{FIRST}" / "oof.parquet", map(int, study_ids))
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        total += shifted / shifted.sum(axis=-1, keepdims=True) * mask[..., None]
        count += mask[..., None]
    with np.errstate(invalid="ignore"):
        return np.asarray((total / count).reshape(len(study_ids), 25, 3))


def write_doubts(
    run: Path,
    study_ids: NDArray[np.int64],
    labels: NDArray[np.int8],
    probs: NDArray[np.float64],
    config: DenoiseConfig,
) -> int:
    """Leave ``denoise/doubted.parquet`` and the counts for the report; returns how many labels are doubted."""
    is_doubted = doubted(labels, probs, config)
    n, column = np.nonzero(is_doubted)
    severity = labels[n, column]
    frame = pd.DataFrame(
        {
            "study_id": study_ids[n],
            "column": [COLUMNS[k] for k in column],
            "severity": [SEVERITIES[k] for k in severity],
            "probability": probs[n, column, severity],
        }
    )
    write_frame(run / FOLDER / "doubted.parquet", frame)
    reason = f"labels: {{}}, out-of-fold probability below {config.below:g} (left out of the second training only)"
    write_doubt_counts(run, {reason.format(name): int((severity == k).sum()) for k, name in enumerate(SEVERITIES)})
    return int(is_doubted.sum())


def without_doubts(run: Path, labels: dict[int, NDArray[np.int8]]) -> dict[int, NDArray[np.int8]]:
    """Labels (25,) by study with the doubted ones missing."""
    out = {study_id: row.copy() for study_id, row in labels.items()}
    frame = read_frame(run / FOLDER / "doubted.parquet")
    for study_id, column in zip(frame["study_id"], frame["column"], strict=True):
        out[int(study_id)][COLUMNS.index(column)] = -1
    return out
