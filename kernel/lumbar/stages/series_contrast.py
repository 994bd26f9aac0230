"""Whether the slices of a series show T1, T2 or STIR, for series whose headers do not tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.config import SeriesContrastConfig
from lumbar.dicom import Stack
from lumbar.geometry import Grid, make_grid
from lumbar.models.inference import forward
from lumbar.stages.crop import grid_images
from lumbar.stages.crop_layout import Images
from lumbar.study import Study

STAGE = "series_contrast"
CONTRASTS = ("T1", "T2", "STIR")
_QUARTER_TURNS = 4  # each slice is looked at in all four
_SHARE = 0.6  # of a stack, around its middle, that slices are taken from


def contrast_grid(stack: Stack, config: SeriesContrastConfig) -> Grid:
    """The grid around a stack's image centre that the network sees."""
    return make_grid(stack, size=config.size, mm_per_px=config.field_mm / config.size)


def middle_indices(n_slices: int, n_chosen: int) -> list[int]:
    """Evenly spaced slices around the middle of a stack; the middle alone for one."""
    middle, half = (n_slices - 1) / 2, _SHARE * (n_slices - 1) / 2
    places = np.linspace(middle - half, middle + half, n_chosen) if n_chosen > 1 else np.array([middle])
    return sorted({int(place) for place in np.rint(places)})


def contrast_images(study: Study, stack: Stack, grid: Grid, indices: Sequence[int]) -> Images:
    """Slices on a grid: (n, size, size) float32 in 0..1."""
    return grid_images(study, stack, grid, list(indices))


def contrast_probs(study: Study, stacks: Sequence[Stack], folds: Sequence[nn.Module]) -> NDArray[np.float64]:
    """Probabilities (3,) of T1, T2 and STIR from all slices of some stacks: the geometric mean over looks.

    A look is one slice in one of four turns, by one fit. The geometric mean lets a clear look count more than others.

    Args:
        study: holds the stacks, and their intensity window.
        stacks: of one series, already thinned to the slices that are looked at.
        folds: fits of the network.
    """
    looks = []
    for fold in folds:
        config = fold.config
        assert isinstance(config, SeriesContrastConfig)
        for stack in stacks:
            images = contrast_images(study, stack, contrast_grid(stack, config), range(len(stack.volume)))
            slices = torch.from_numpy(images)[:, None]
            turned = torch.cat([torch.rot90(slices, k, (2, 3)) for k in range(_QUARTER_TURNS)])
            looks.append(forward(fold, turned).double().log_softmax(dim=1))
    return np.asarray(torch.cat(looks).mean(dim=0).softmax(dim=0).numpy())
