"""Copies of a study under another name: the same pixels on both sides of a split would be a leak by upsampling."""

from __future__ import annotations

import pandas as pd

from lumbar_train.data.studies import Studies
from lumbar_train.errors import LeakError


def check_copies(studies: Studies, folds: pd.DataFrame) -> None:
    """Refuse folds that hold the very same images in two of them.

    Args:
        studies: where every study of ``folds`` is.
        folds: ``study_id, fold``.

    Raises:
        LeakError: naming the first such pair.
    """
    first: dict[str, tuple[int, int]] = {}
    for study_id, fold in zip(folds["study_id"].astype(int), folds["fold"].astype(int), strict=True):
        other, other_fold = first.setdefault(studies.digest(study_id), (study_id, fold))
        if other_fold != fold:
            raise LeakError(
                f"study {study_id} in fold {fold} holds the same images as study {other} in fold {other_fold}: "
                "expected copies (of upsampling, for one) in one fold, or none"
            )
