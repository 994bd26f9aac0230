"""Classification: crops of every level through every classifier → logits (models, conditions, levels, 3) and mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.labels import LEVELS
from lumbar.models.classifier import AxialClassifier, SagittalClassifier
from lumbar.models.inference import Networks, forward
from lumbar.stages.crop import axial_crops, sagittal_crops
from lumbar.stages.points import Localisation
from lumbar.study import Study

CLASSIFIERS = ("sagittal_classifier", "axial_subarticular", "axial_all")
MIRRORED = (0, 2, 1, 4, 3)  # the index that each condition has in the mirrored patient

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]


def series_to_classify(localisation: Localisation, network: nn.Module) -> list[str | None]:
    """The axial series that a classifier grades one after the other; [None] where it takes all of them together."""
    if isinstance(network, AxialClassifier) and network.config.per_series:
        return [*localisation.axial_series()] or [None]
    return [None]


def level_tensors(
    study: Study, localisation: Localisation, network: nn.Module, series_id: str | None = None
) -> tuple[Tensor, Tensor]:
    """Crops of all five levels for a classifier: (5, …, size, size) float32, and a mask (5, …) bool.

    Args:
        study: its stacks.
        localisation: the levels' points on them.
        network: the classifier, whose configuration says how to cut.
        series_id: the axial series to cut from, one of ``series_to_classify``; None for all together.
    """
    assert isinstance(network, (SagittalClassifier, AxialClassifier))
    pairs = []
    for level in range(len(LEVELS)):
        if isinstance(network, SagittalClassifier):
            pairs.append(sagittal_crops(study, localisation, level, network.config))
        else:
            pairs.append(axial_crops(study, localisation, level, network.config, series_id=series_id))
    crops, masks = zip(*pairs, strict=True)
    return torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack(masks))


def mirror(network: nn.Module, crops: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The crops of the mirrored patient: the side windows of sagittal crops are swapped, axial images are flipped."""
    if isinstance(network, SagittalClassifier):
        swapped = crops[:, [0, 2, 1]].clone()
        swapped_mask = mask[:, [0, 2, 1]].clone()
        swapped[:, 0] = crops[:, 0].flip(1)  # the canal window runs right to left
        swapped_mask[:, 0] = mask[:, 0].flip(1)
        return swapped, swapped_mask
    return crops.flip(-1), mask


def target_mask(network: nn.Module, mask: Tensor) -> Tensor:
    """Which logits rest on images: (L levels, 5 conditions) bool, from the crops' mask (L, …)."""
    out = torch.zeros(len(mask), 5, dtype=torch.bool, device=mask.device)
    if isinstance(network, SagittalClassifier):
        out[:, :3] = mask.any(dim=2)
    else:
        assert isinstance(network, AxialClassifier)
        for condition in network.targets:
            out[:, condition] = mask.any(dim=1)
    return out


def run_classifier(network: nn.Module, crops: Tensor, mask: Tensor, *, flip: bool) -> Tensor:
    """Logits (L, 5, 3) of L levels; with ``flip`` the mean with those of the mirrored patient, sides swapped back."""
    level = torch.arange(len(crops))
    out = forward(network, crops, mask, level)
    if flip:
        out = (out + forward(network, *mirror(network, crops, mask), level)[:, list(MIRRORED)]) / 2
    return out


def study_logits(
    study: Study, localisation: Localisation, folds: Sequence[nn.Module], *, flip: bool
) -> tuple[Tensor, Tensor]:
    """Logits (5 levels, 5 conditions, 3) of one classifier, averaged over folds and series, and which rest on images.

    A series counts only for the levels that it shows.
    """
    total, count = torch.zeros(len(LEVELS), 5, 3), torch.zeros(len(LEVELS), 5)
    series_ids = series_to_classify(localisation, folds[0])
    for series_id in series_ids:
        crops, mask = level_tensors(study, localisation, folds[0], series_id)
        shown = target_mask(folds[0], mask)
        if not mask.any():
            continue
        out = torch.stack([run_classifier(network, crops, mask, flip=flip) for network in folds]).mean(dim=0)
        if len(series_ids) == 1:
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
