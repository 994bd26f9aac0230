"""Classification: crops of every level through every classifier → logits (models, conditions, levels, 3) and mask."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.config import FUSION
from lumbar.labels import LEVELS, MIRRORED, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models.classifier import AxialClassifier, SagittalClassifier
from lumbar.models.inference import Networks, forward, graded
from lumbar.stages.classifiers import Crop, crop_of, view_of
from lumbar.stages.crop import level_slices
from lumbar.stages.crop_layout import Look, SeriesPair, crops_shape, filled, sagittal_windows
from lumbar.stages.fuse import Features, fused_fits, members_of
from lumbar.stages.points import Localisation
from lumbar.study import Study

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
    return _run_views(network, tensors, mirrored_levels(network, tensors) if flip else None)


def _run_views(
    network: nn.Module, tensors: LevelTensors, mirrored: LevelTensors | None, features: list[Tensor] | None = None
) -> Tensor:
    """``run_levels``; the features of each view are added to ``features``, where they are asked for."""
    outs = []
    for view in (tensors,) if mirrored is None else (tensors, mirrored):
        if features is None:
            outs.append(forward(network, *view.inputs(network)))
        else:
            out, own = graded(network, *view.inputs(network))
            outs.append(out)
            features.append(own)
    return outs[0] if mirrored is None else (outs[0] + outs[1][:, list(MIRRORED)]) / 2


def fits_logits(
    study: Study,
    localisation: Localisation,
    fits: Sequence[nn.Module],
    *,
    flip: bool,
    features: MutableMapping[int, Features] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Of each network, logits (5 levels, 5 conditions, 3) averaged over series, and which rest on images.

    Crops are cut once for all networks that look at the same, and kept no longer than these networks run. What the
    logits rest on is put into ``features`` by the network's place, where it is asked for.
    """
    by_crop: dict[tuple[str, Crop], list[int]] = {}
    for place, network in enumerate(fits):
        assert isinstance(network, (SagittalClassifier, AxialClassifier))
        by_crop.setdefault((view_of(network.config), crop_of(network.config)), []).append(place)
    out: dict[int, tuple[Tensor, Tensor]] = {}
    for places in by_crop.values():
        own: dict[int, Features] | None = None if features is None else {}
        together = _logits_of_crops(study, localisation, [fits[place] for place in places], flip=flip, features=own)
        out.update(zip(places, together, strict=True))
        if features is not None and own is not None:
            features.update({places[k]: value for k, value in own.items()})
    return [out[place] for place in range(len(fits))]


def _logits_of_crops(
    study: Study,
    localisation: Localisation,
    networks: Sequence[nn.Module],
    *,
    flip: bool,
    features: dict[int, Features] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """``fits_logits`` of networks that look at the same crops. A series counts only for the levels that it shows."""
    totals = [torch.zeros(len(LEVELS), 5, 3) for _ in networks]
    counts = [torch.zeros(len(LEVELS), 5) for _ in networks]
    series = series_to_classify(localisation, networks[0])
    for look in series:
        tensors = all_levels(study, localisation, networks[0], look)
        if not tensors.mask.any():
            continue
        mirrored = mirrored_levels(networks[0], tensors) if flip else None
        for place, network in enumerate(networks):
            shown = target_mask(network, tensors.mask)
            views: list[Tensor] | None = None if features is None else []
            out = _run_views(network, tensors, mirrored, views)
            if features is not None and views is not None:
                of_look = Features.of_look(views, shown)
                features[place] = features[place].plus(of_look) if place in features else of_look
            totals[place] += out * shown[..., None] if len(series) > 1 else out
            counts[place] += shown
    return [(total / count.clamp(min=1)[..., None], count > 0) for total, count in zip(totals, counts, strict=True)]


def joined_fits(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits and masks of the fits of one classifier averaged: for each target, over those that saw it."""
    logits, shown = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    count = shown.sum(dim=0)[..., None]
    seen = (logits * shown[..., None]).sum(dim=0) / count.clamp(min=1)
    return torch.where(count > 0, seen, logits.mean(dim=0)), shown.any(dim=0)


def study_logits(
    study: Study, localisation: Localisation, folds: Sequence[nn.Module], *, flip: bool
) -> tuple[Tensor, Tensor]:
    """Logits (5 levels, 5 conditions, 3) of one classifier, averaged over folds and series; which rest on images."""
    return joined_fits(fits_logits(study, localisation, folds, flip=flip))


def classify(
    study: Study,
    localisation: Localisation,
    networks: Networks,
    *,
    names: tuple[str, ...] | None = None,
    flip: bool = True,
    all_folds: bool = True,
    skip: frozenset[str] = frozenset(),
    problems: list[str] | None = None,
) -> tuple[Logits, Mask]:
    """Run the classifiers: logits (M, 5 conditions, 5 levels, 3) and mask (M, 5, 5), averaged over folds and series.

    The fusion of a bundle that has one is a classifier too; it is masked where one of its members does not run.

    Args:
        study: its stacks.
        localisation: the points on them.
        networks: of one bundle.
        names: the M classifiers, in the order of the result; None: all of the bundle's.
        flip: average with the mirrored patient.
        all_folds: every fold's weights, and not the first alone.
        skip: classifiers that do not run; their logits are masked.
        problems: gets a line for each external member that fails on the study; its logits are masked.
    """
    names = networks.classifiers if names is None else names
    logits = np.zeros((len(names), 5, 5, 3), np.float32)
    masks = np.zeros((len(names), 5, 5), bool)
    running = {name: networks.stage(name)[: None if all_folds else 1] for name in names if name not in {*skip, FUSION}}
    fits = [(name, network) for name, folds in running.items() for network in folds]
    is_fused = FUSION in names and FUSION not in skip and running.keys() >= {*members_of(networks.stage(FUSION))}
    features: dict[int, Features] | None = {} if is_fused else None
    pairs = fits_logits(study, localisation, [network for _, network in fits], flip=flip, features=features)
    answers = {name: [pair for (own, _), pair in zip(fits, pairs, strict=True) if own == name] for name in running}
    if features is not None:
        seen = {name: [features.get(k) for k, (own, _) in enumerate(fits) if own == name] for name in running}
        answers[FUSION] = fused_fits(networks.stage(FUSION), answers, seen)
    for m, name in enumerate(names):
        if answers.get(name):
            out, shown = joined_fits(answers[name])
            logits[m] = out.permute(1, 0, 2).numpy()  # (5 conditions, 5 levels, 3)
            masks[m] = shown.T.numpy()
    lines: list[str] = [] if problems is None else problems
    for m, name in enumerate(names):
        if name in networks.external and name not in skip:
            member = networks.external[name]
            logits[m], masks[m] = member.answer(study, localisation, lines, flip=flip, all_folds=all_folds)
    return logits, masks
