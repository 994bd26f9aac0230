"""How a level's crops are laid out in tensors: windows, places in them, and what each place shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig
from lumbar.dicom import Stack
from lumbar.geometry import Grid
from lumbar.study import Study

Images = NDArray[np.float32]


class SeriesPair(NamedTuple):
    """A look of a sagittal classifier: the T2 and the T1 series that it reads; None where there is none."""

    t2: str | None
    t1: str | None


Look = str | SeriesPair | None  # an axial series, a sagittal pair, or None: whatever there is, together


@dataclass(frozen=True)
class CropSlice:
    """One slice of a level's crops: where it stands in the tensor, what it shows on which grid, how far it lies.

    ``position_mm``: sagittal, from the level's canal point along the slices' normal, positive on the patient's left;
    axial, from the level's canal point, positive above it.
    """

    window: int
    step: int
    stack: Stack
    slice_index: int
    grid: Grid
    position_mm: float


@dataclass(frozen=True)
class Crops:
    """Crops of one level as a classifier takes them.

    ``images`` (windows, S, size, size) sagittal or (S, size, size) axial, ``mask`` and ``position_mm`` the same without
    the last two axes; masked slices are 0.
    """

    images: Images
    mask: NDArray[np.bool_]
    position_mm: NDArray[np.float32]


def crops_shape(
    config: SagittalClassifierConfig | AxialClassifierConfig, slices: Sequence[CropSlice]
) -> tuple[int, ...]:
    """Shape of the mask of these slices: (windows, S) sagittal, (S,) axial."""
    length = max((one.step + 1 for one in slices), default=1) if config.max_slices else config.window
    if isinstance(config, SagittalClassifierConfig):
        return (2 if config.max_slices else 3, length)
    return (length,)


def sagittal_windows(config: SagittalClassifierConfig, condition: int) -> tuple[int, ...]:
    """The windows that a condition of a sagittal classifier is read from."""
    t1 = (1, 1) if config.max_slices else (1, 2)
    return {0: (0,), 1: t1[:1], 2: t1[1:], 3: (0, t1[0]), 4: (0, t1[1])}[condition]


def filled(study: Study, slices: Sequence[CropSlice], shape: tuple[int, ...], size: int) -> Crops:
    """Slices sampled into images of ``size`` pixels a side; the mask has ``shape``."""
    flat = int(np.prod(shape))
    images = np.zeros((flat, size, size), np.float32)
    mask, position = np.zeros(flat, bool), np.zeros(flat, np.float32)
    for one in slices:
        place = one.window * shape[-1] + one.step
        images[place] = study.sampled(one.stack, one.slice_index, one.grid)
        mask[place], position[place] = True, one.position_mm
    return Crops(images.reshape(*shape, size, size), mask.reshape(shape), position.reshape(shape))


def thinned(n: int, most: int) -> list[int]:
    """``most`` of ``n`` places in order, evenly spread with both ends; all where there are no more."""
    if n <= most:
        return list(range(n))
    return [int(k) for k in np.round(np.linspace(0, n - 1, most))]
