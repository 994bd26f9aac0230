"""Which images a fit trains on: split by study first, upsampled afterwards, with no copy of an image on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar_train.data.folds import check_split
from lumbar_train.errors import LeakError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Both sides of a split, as rows of the table of images.

    Attributes:
        train: labelled images that the fit learns from, each once.
        held_out: all images of the fold, labelled or not.
        n_copies: images left out of training because a held-out image is the same, pixel by pixel.
    """

    train: Rows
    held_out: Rows
    n_copies: int


def split_images(table: pd.DataFrame, classes: NDArray[np.int8], train: set[int], held_out: set[int]) -> Split:
    """Split the images of a column by study.

    Args:
        table: ``study_id`` and ``pixels`` (hash of the pixels, empty for an image of one single value) of each image.
        classes: (N,) class of each image, -1 without label.
        train: studies to learn from.
        held_out: studies of the fold.

    Raises:
        LeakError: a study is on both sides.
    """
    check_split(train, held_out)
    studies = table["study_id"].to_numpy()
    is_held_out = np.isin(studies, list(held_out))
    is_train = np.isin(studies, list(train)) & (classes >= 0)
    pixels = table["pixels"]
    is_copy = is_train & pixels.isin(set(pixels[is_held_out]) - {""}).to_numpy()
    rows = np.flatnonzero(is_train & ~is_copy)
    split = Split(rows, np.flatnonzero(is_held_out), int(is_copy.sum()))
    check_images(table, split.train, split.held_out)
    return split


def upsample(rows: Rows, classes: NDArray[np.int8], seed: int) -> Rows:
    """Repeat rows until every class is as frequent as the most frequent one.

    All images of a class appear equally often, or once more for some that are drawn.

    Args:
        rows: (N,) rows of images.
        classes: (N,) class of each, 0 or more.
        seed: of the draw.

    Returns:
        (number of classes × size of the largest class,)
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(classes, minlength=3)
    per_class = int(counts.max(initial=0))
    parts = []
    for k in np.flatnonzero(counts):
        members = rows[classes == k]
        rest = rng.choice(members, per_class % len(members), replace=False)
        parts.append(np.concatenate([np.tile(members, per_class // len(members)), rest]))
    return np.concatenate(parts) if parts else rows[:0]


def check_images(table: pd.DataFrame, train: Rows, held_out: Rows) -> None:
    """Refuse rows that have an image, a study, or a copy of an image on both sides.

    Upsampling before the split would cause that. The check is made on the very rows that a fit gets.

    Raises:
        LeakError: names the first such image or study.
    """
    both = np.intersect1d(train, held_out)
    if both.size:
        raise LeakError(f"{table['image_path'].iloc[both[0]]}: is both trained on and held out, expected one of them")
    check_split(table["study_id"].iloc[train], table["study_id"].iloc[held_out])
    seen = table.iloc[np.unique(train)]
    copies = seen[seen["pixels"].isin(set(table["pixels"].iloc[held_out]) - {""})]
    if len(copies):
        raise LeakError(
            f"{copies['image_path'].iloc[0]}: is trained on and a copy of a held-out image ({len(copies)} such), "
            "expected none"
        )
