"""Labels softened by predictions of networks that saw neither the study nor the fold that is held out.

A second round of training as the competition's 2nd place had it: half the label, half the prediction. An ordinary
out-of-fold prediction of a training study comes from a network that has learnt from the fold held out here, and would
carry that fold's labels into the round that is scored on it. So the studies of each fit are cut into parts of their
own, and each part is predicted by networks fitted on the other parts alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lumbar_train.data.folds import FULL, fold_name, is_full
from lumbar_train.errors import LeakError
from lumbar_train.evaluation.scoring import to_plain
from lumbar_train.outputs.store import read_frame, read_logits

PSEUDO = "-pseudo"  # ends the names of the stages that predict training studies


@dataclass(frozen=True)
class PseudoConfig:
    """``share`` of a label that is the prediction; into how many ``parts`` the studies of a fit are cut."""

    share: float = 0.5
    parts: int = 2


def fold_of_labels(fold: int) -> int:
    """The fold whose predictions a fit learns from: all fits on all data share one set."""
    return FULL if is_full(fold) else fold


def parts_of(study_ids: Iterable[int], n: int, seed: int) -> list[list[int]]:
    """Studies cut at random into ``n`` parts of equal size, in ascending order each."""
    ids = np.array(sorted(study_ids))
    order = np.random.default_rng([seed, n]).permutation(len(ids))
    return [sorted(map(int, ids[rows])) for rows in np.array_split(order, n)]


def part_suffix(number: int) -> str:
    """Ends the names of what belongs to the fit that a part's predictions come from."""
    return f"-part{number}"


def predictions_path(run: Path, stage: str, fold: int) -> Path:
    """Where a classifier's predictions of the studies that a fit learns from lie."""
    return run / f"{stage}{PSEUDO}" / f"{fold_name(fold_of_labels(fold))}.parquet"


def soft_labels(
    run: Path,
    stages: Sequence[str],
    fold: int,
    labels: Mapping[int, NDArray[np.int8]],
    fold_of: Mapping[int, int],
    config: PseudoConfig,
) -> dict[int, NDArray[np.float32]]:
    """Labels (25, 3) of the studies outside a fold as mixtures of the grade that was read and what was predicted.

    The mean prediction of all classifiers that saw a target counts, as plain frequencies: networks learn under the
    metric's weights 1/2/4, and the loss weighs the mixture's grades once more. NaN where none did, or no label is
    known.

    Raises:
        LeakError: a study of the fold that is held out has a prediction.
        CohortError: the predictions have not been made.
    """
    ids = sorted(k for k in labels if fold_of.get(k) != fold or is_full(fold))
    total, count = np.zeros((len(ids), 5, 5, 3)), np.zeros((len(ids), 5, 5, 1))
    for stage in stages:
        path = predictions_path(run, stage, fold)
        both = sorted(set(map(int, read_frame(path)["study_id"])) - set(ids))
        if both:
            raise LeakError(f"{path}: found study {both[0]}, which {fold_name(fold)} holds out, expected none of them")
        logits, mask = read_logits(path, ids)
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        total += shifted / shifted.sum(axis=-1, keepdims=True) * mask[..., None]
        count += mask[..., None]
    with np.errstate(invalid="ignore"):
        predicted = to_plain((total / count).reshape(len(ids), 25, 3))
    own = np.stack([labels[k] for k in ids]) if ids else np.zeros((0, 25), np.int8)
    read = np.eye(3)[np.maximum(own, 0)]
    soft = (1 - config.share) * read + config.share * predicted
    soft[own < 0] = np.nan
    return {study_id: row.astype(np.float32) for study_id, row in zip(ids, soft, strict=True)}
