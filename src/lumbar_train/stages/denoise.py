"""Labels that networks which never saw their study contradict: left out of one second training of the classifiers.

On the competition's noisy labels this helped other teams most. Nothing is ever scored on changed labels: suspect
labels are left out of training alone, and the tables of a cohort stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.labels import COLUMNS, SEVERITIES
from lumbar_train.data.usable import write_suspect_counts
from lumbar_train.evaluation.scoring import to_plain
from lumbar_train.outputs.store import read_frame, read_logits, write_frame

NAME = "denoise"  # the stage, and its folder
FIRST = "-first"  # ends the names of the classifiers' first round


@dataclass(frozen=True)
class DenoiseConfig:
    """When a label is suspect.

    Attributes:
        below: its out-of-fold probability is lower than this.
        most: at most this share of each severity's labels is suspect, the least probable ones.
    """

    below: float = 0.03
    most: float = 0.03


def suspect_labels(labels: NDArray[np.int8], probs: NDArray[np.float64], config: DenoiseConfig) -> NDArray[np.bool_]:
    """Which labels (N, 25) are suspect, by out-of-fold probabilities (N, 25, 3); NaN makes no label suspect."""
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
    """Mean out-of-fold probabilities (N, 25, 3) over the classifiers that saw a target; NaN where none did.

    Plain frequencies: networks learn under the metric's weights 1/2/4, by which mild labels would seem suspect first.
    """
    total, count = np.zeros((len(study_ids), 5, 5, 3)), np.zeros((len(study_ids), 5, 5, 1))
    for stage in stages:
        logits, mask = read_logits(run / f"{stage}{FIRST}" / "oof.parquet", map(int, study_ids))
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        total += shifted / shifted.sum(axis=-1, keepdims=True) * mask[..., None]
        count += mask[..., None]
    with np.errstate(invalid="ignore"):
        return to_plain(np.asarray((total / count).reshape(len(study_ids), 25, 3)))


def write_suspect_labels(
    run: Path,
    study_ids: NDArray[np.int64],
    labels: NDArray[np.int8],
    probs: NDArray[np.float64],
    config: DenoiseConfig,
) -> int:
    """Write ``denoise/suspect_labels.parquet`` and the counts for the report; returns how many labels are suspect."""
    is_suspect = suspect_labels(labels, probs, config)
    n, column = np.nonzero(is_suspect)
    severity = labels[n, column]
    frame = pd.DataFrame(
        {
            "study_id": study_ids[n],
            "column": [COLUMNS[k] for k in column],
            "severity": [SEVERITIES[k] for k in severity],
            "probability": probs[n, column, severity],
        }
    )
    write_frame(run / NAME / "suspect_labels.parquet", frame)
    reason = f"labels: {{}}, out-of-fold probability below {config.below:g} (left out of the second training only)"
    write_suspect_counts(run, {reason.format(name): int((severity == k).sum()) for k, name in enumerate(SEVERITIES)})
    return int(is_suspect.sum())


def without_suspect_labels(run: Path, labels: dict[int, NDArray[np.int8]]) -> dict[int, NDArray[np.int8]]:
    """Labels (25,) by study with the suspect ones missing."""
    out = {study_id: row.copy() for study_id, row in labels.items()}
    frame = read_frame(run / NAME / "suspect_labels.parquet")
    for study_id, column in zip(frame["study_id"], frame["column"], strict=True):
        out[int(study_id)][COLUMNS.index(column)] = -1
    return out
