"""Classification: crops of every level through every classifier → logits (models, conditions, levels, 3) and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models.classifier import AxialClassifier, SagittalClassifier
from lumbar.models.inference import Networks, forward
from lumbar.stages.crop import level_slices
from lumbar.stages.crop_layout import Look, SeriesPair, crops_shape, filled, sagittal_windows
from lumbar.stages.points import Localisation
from lumbar.study import Study

CLASSIFIERS = ("sagittal_classifier", "axial_subarticular", "axial_all")
MIRRORED = (0, 2, 1, 4, 3)  # the index that each condition has in the mirrored patient

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]


def series_to_classify(localisation: Localisation, network: nn.Module) -> list[Look]:
    """What a classifier looks at one after the other where it takes one series at a time; else one look at all.

    An axial classifier takes every axial series, a sagittal one every pair of a T2 and a T1 series.
    """
    assert isinstance(network, (SagittalClassifier, AxialClassifier))
    if not network.config.per_series:
        return [None]
    if isinstance(network, AxialClassifier):
        series: list[Look] = [*localisation.axial_series()]
    else:
        series = [*series_pairs(localisation)]
    return series or [None]


def series_pairs(localisation: Localisation, level: str | None = None) -> list[SeriesPair]:
    """Every pair of a T2 and a T1 series that show a level, or any; None in the place of a kind that is missing."""
    t2, t1 = (localisation.sagittal_series(description, level) for description in (SAGITTAL_T2, SAGITTAL_T1))
    if not t2 and not t1:
        return []
    missing: list[str | None] = [None]
    return [SeriesPair(a, b) for a in t2 or missing for b in t1 or missing]


@dataclass(frozen=True)
class LevelTensors:
    """Crops of all five levels of one look: images (5, …, size, size) float32, mask (5, …) bool, mm (5, …) float32."""

    images: Tensor
    mask: Tensor
    position_mm: Tensor

    def inputs(self, network: nn.Module) -> tuple[Tensor, ...]:
        """What a classifier is called with."""
        inputs = self.images, self.mask, torch.arange(len(self.images))
        return (*inputs, self.position_mm) if network.config.max_slices else inputs  # type: ignore[union-attr]


def all_levels(study: Study, localisation: Localisation, network: nn.Module, look: Look = None) -> LevelTensors:
    """Crops of all five levels of one of a classifier's ``series_to_classify``, padded to the longest sequence."""
    assert isinstance(network, (SagittalClassifier, AxialClassifier))
    config = network.config
    slices = [level_slices(study, localisation, level, config, look=look) for level in range(len(LEVELS))]
    shape = crops_shape(config, [one for some in slices for one in some])
    crops = [filled(study, some, shape, config.size) for some in slices]
    arrays = zip(*((one.images, one.mask, one.position_mm) for one in crops), strict=True)
    return LevelTensors(*(torch.from_numpy(np.stack(array)) for array in arrays))


def mirror(network: nn.Module, crops: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mirrored patient's crops: sides change places in sagittal windows, axial images are flipped."""
    if not isinstance(network, SagittalClassifier):
        return crops.flip(-1), mask
    if network.config.max_slices:  # whole series, right to left
        return crops.flip(2), mask.flip(2)
    swapped = crops[:, [0, 2, 1]].clone()
    swapped_mask = mask[:, [0, 2, 1]].clone()
    swapped[:, 0] = crops[:, 0].flip(1)  # the canal window runs right to left
    swapped_mask[:, 0] = mask[:, 0].flip(1)
    return swapped, swapped_mask


def mirrored_levels(network: nn.Module, tensors: LevelTensors) -> LevelTensors:
    """``mirror`` with the positions: distances to the midline change sign, those to a level do not."""
    images, mask = mirror(network, tensors.images, tensors.mask)
    position = tensors.position_mm
    if isinstance(network, SagittalClassifier) and network.config.max_slices:
        position = -position.flip(2)
    return LevelTensors(images, mask, position)


def target_mask(network: nn.Module, mask: Tensor) -> Tensor:
    """Which logits rest on images: (L levels, 5 conditions) bool, from the crops' mask (L, …)."""
    out = torch.zeros(len(mask), 5, dtype=torch.bool, device=mask.device)
    if isinstance(network, SagittalClassifier):
        shown = mask.any(dim=2)
        for condition in network.targets:
            out[:, condition] = shown[:, list(sagittal_windows(network.config, condition))].any(dim=1)
    else:
        assert isinstance(network, AxialClassifier)
        for condition in network.targets:
            out[:, condition] = mask.any(dim=1)
    return out


def run_levels(network: nn.Module, tensors: LevelTensors, *, flip: bool) -> Tensor:
    """Logits (L, 5, 3) of L levels; with ``flip`` averaged with the mirrored patient's, sides changed back."""
    out = forward(network, *tensors.inputs(network))
    if flip:
        other = forward(network, *mirrored_levels(network, tensors).inputs(network))
        out = (out + other[:, list(MIRRORED)]) / 2
    return out


def study_logits(
    study: Study, localisation: Localisation, folds: Sequence[nn.Module], *, flip: bool
) -> tuple[Tensor, Tensor]:
    """Logits (5 levels, 5 conditions, 3) of one classifier, averaged over folds and series, and which rest on images.

    A series counts only for the levels that it shows.
    """
    total, count = torch.zeros(len(LEVELS), 5, 3), torch.zeros(len(LEVELS), 5)
    series = series_to_classify(localisation, folds[0])
    for look in series:
        tensors = all_levels(study, localisation, folds[0], look)
        shown = target_mask(folds[0], tensors.mask)
        if not tensors.mask.any():
            continue
        out = torch.stack([run_levels(network, tensors, flip=flip) for network in folds]).mean(dim=0)
        if len(series) == 1:
            return out, shown
        total += out * shown[..., None]
        count += shown
    return total / count.clamp(min=1)[..., None], count > 0


def classify(
    study: Study,
    localisation: Localisation,
    networks: Networks,
    *,
    names: tuple[str, ...] = CLASSIFIERS,
    flip: bool = True,
    all_folds: bool = True,
    skip: frozenset[str] = frozenset(),
) -> tuple[Logits, Mask]:
    """Run the classifiers: logits (M, 5 conditions, 5 levels, 3) and mask (M, 5, 5), averaged over folds and series.

    Args:
        study: its stacks.
        localisation: the points on them.
        networks: of one bundle.
        names: the M classifiers, in the order of the result.
        flip: average with the mirrored patient.
        all_folds: every fold's weights, and not the first alone.
        skip: classifiers that do not run; their logits are masked.
    """
    logits = np.zeros((len(names), 5, 5, 3), np.float32)
    masks = np.zeros((len(names), 5, 5), bool)
    for m, name in enumerate(names):
        folds = networks.stage(name)
        if name in skip or not folds:
            continue
        folds = folds if all_folds else folds[:1]
        out, shown = study_logits(study, localisation, folds, flip=flip)
        logits[m] = out.permute(1, 0, 2).numpy()  # (5 conditions, 5 levels, 3)
        masks[m] = shown.T.numpy()
    return logits, masks
