"""Which images a fit trains on: split by study first, upsampled afterwards, and no copy ever on both sides."""

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
    """Rows of the table of images.

    Attributes:
        train: labelled images that the fit learns from, each once.
        held_out: all images of the fold, labelled or not.
        n_copies: images left out of training because a held-out picture is the same, pixel by pixel.
    """

    train: Rows
    held_out: Rows
    n_copies: int


def split_images(table: pd.DataFrame, classes: NDArray[np.int8], train: set[int], held_out: set[int]) -> Split:
    """Split the images of a column by study.

    Args:
        table: ``study_id`` and ``pixels`` (hash of the picture, empty for one without content) of each image.
        classes: (N,) class of each image, -1 without label.
        train, held_out: studies.

    Raises:
        LeakError: a study on both sides.
    """
    check_split(train, held_out)
    studies = table["study_id"].to_numpy()
    is_held_out = np.isin(studies, list(held_out))
    is_train = np.isin(studies, list(train)) & (classes >= 0)
    pixels = table["pixels"]
    is_copy = is_train & pixels.isin(set(pixels[is_held_out]) - {""}).to_numpy()
    rows = np.flatnonzero(is_train & ~is_copy)
    found = Split(rows, np.flatnonzero(is_held_out), int(is_copy.sum()))
    check_images(table, found.train, found.held_out)
    return found


def upsample(rows: Rows, classes: NDArray[np.int8], seed: int) -> Rows:
    """Repeat rows until every class is as frequent as the most frequent one: (n classes × majority,).

    Every image of a class appears equally often, but for a remainder that is drawn.

    Args:
        rows: (N,) to draw from.
        classes: (N,) class of each, 0 or more.
        seed: of the remainder.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(classes, minlength=3)
    wanted = int(counts.max(initial=0))
    parts = []
    for k in np.flatnonzero(counts):
        members = rows[classes == k]
        rest = rng.choice(members, wanted % len(members), replace=False)
        parts.append(np.concatenate([np.tile(members, wanted // len(members)), rest]))
    return np.concatenate(parts) if parts else rows[:0]


def check_images(table: pd.DataFrame, train: Rows, held_out: Rows) -> None:
    """Refuse an image, a study, or a copy of a picture on both sides, however it came there.

    This is what upsampling before the split would do; it is asked again of the rows that a fit is really given.

    Raises:
        LeakError: naming the first such image.
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
