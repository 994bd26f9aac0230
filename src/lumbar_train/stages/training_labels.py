"""What a classifier's fit learns from: labels that count, softened ones, and series that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.config import CLASSIFIERS
from lumbar.stages.points import Localisation
from lumbar_train.data.studies import Studies
from lumbar_train.recipes import Recipe
from lumbar_train.stages import consistency, denoise, pseudo
from lumbar_train.stages.denoise import FIRST


@dataclass(frozen=True)
class TrainingLabels:
    """``labels`` (25,) by study, -1 where one does not count; ``soft`` (25, 3) by study, or None; series left out."""

    labels: dict[int, NDArray[np.int8]]
    soft: dict[int, NDArray[np.float32]] | None = None
    left_out: frozenset[str] = field(default_factory=frozenset)


def training_labels(
    run: Path,
    recipe: Recipe,
    suffix: str,
    fold: int,
    labels: Mapping[int, NDArray[np.int8]],
    fold_of: Mapping[int, int],
    consistent: consistency.Kept | None,
) -> TrainingLabels:
    """The labels of one round: the first has no suspect ones yet, and only the last has softened ones.

    Args:
        run: its folder.
        recipe: which steps are on.
        suffix: of the round (``FIRST``, ``PSEUDO`` or nothing).
        fold: that is held out.
        labels: all labels of the cohort.
        fold_of: fold by study.
        consistent: what the consistency filter keeps; None where it is off.
    """
    own = dict(labels) if consistent is None else dict(consistent.labels)
    left_out: frozenset[str] = frozenset() if consistent is None else consistent.left_out
    if recipe.denoise is not None and suffix != FIRST:
        own = denoise.without_suspect_labels(run, own)
    soft = None
    if recipe.pseudo is not None and not suffix:
        soft = pseudo.soft_labels(run, CLASSIFIERS, fold, own, fold_of, recipe.pseudo)
        missing = np.full((25, 3), np.nan, np.float32)
        soft |= {study_id: missing for study_id in own if study_id not in soft}
    return TrainingLabels(own, soft, left_out)


def consistent_labels(
    run: Path,
    recipe: Recipe,
    cache: Studies,
    localisations: Mapping[int, Localisation],
    points: pd.DataFrame,
    labels: Mapping[int, NDArray[np.int8]],
    *,
    is_writing: bool,
) -> consistency.Kept | None:
    """What the consistency filter of a recipe keeps, noted in the run folder; None where it is off."""
    config = recipe.consistency
    if config is None:
        return None
    sagittal, axial = (recipe.stages[name].network for name in CLASSIFIERS[:2])
    frame = consistency.judged(cache, localisations, points, sagittal, axial, config)
    result = consistency.kept(frame, labels, config)
    if is_writing:
        consistency.write_kept(run, frame, labels, result, config)
    return result
