"""CutMix (Yun et al. 2019) and mixup (Zhang et al. 2018) of one level's crops, aware of what each condition sees.

The partner is drawn from the sample's own generator and shows the same level, so that neither ranks nor batches change
what is mixed; it is read only where something is mixed. Each condition gets its own share of either label: by the
windows that it is read from, by its half of an axial image, and by the slices that both samples have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lumbar.stages.crop_layout import CropSlice

Images = NDArray[np.float32]
Mask = NDArray[np.bool_]
Windows = Mapping[int, tuple[int, ...]]  # the windows of a sagittal sample that a condition is read from

NEAR_MM = 5.0  # slices of two patients show the same place within this: the usual distance of sagittal slices
_THREE_WINDOWS: Windows = {0: (0,), 1: (1,), 2: (2,)}  # canal, left foramen, right foramen


@dataclass(frozen=True)
class MixConfig:
    """Chances of either, and the parameter of the Beta distribution that the share is drawn from."""

    cutmix: float = 0.0
    mixup: float = 0.0
    alpha: float = 1.0


@dataclass(frozen=True)
class MixPlan:
    """Inside a box (x0, y0, x1, y1) in pixels, ``amount`` of the image is the other sample's."""

    box: tuple[int, int, int, int]
    amount: float

    def weight(self, size: int) -> NDArray[np.float32]:
        """The own share (size, size) of each pixel."""
        out = np.ones((size, size), np.float32)
        x0, y0, x1, y1 = self.box
        out[y0:y1, x0:x1] = 1.0 - self.amount
        return out


def draw_plan(size: int, config: MixConfig, rng: np.random.Generator) -> MixPlan | None:
    """What is mixed of images of ``size`` pixels; None: nothing."""
    draw, ratio = rng.random(), float(rng.beta(config.alpha, config.alpha))
    corner = rng.random(2)
    if draw < config.cutmix:
        side = round(size * ratio**0.5)
        y, x = (round(float(c) * (size - side)) for c in corner)
        return MixPlan((x, y, x + side, y + side), 1.0)
    if draw < config.cutmix + config.mixup:
        return MixPlan((0, 0, size, size), ratio)
    return None


def mix(
    crops: Images, mask: Mask, other: Images, other_mask: Mask, config: MixConfig, rng: np.random.Generator
) -> tuple[Images, NDArray[np.float32]]:
    """A sample's crops with part of another's, and by condition the share (5,) that is still the sample's own.

    Args:
        crops: (3, window, size, size) sagittal or (window, size, size) axial.
        mask: (3, window) or (window,); slices that only one of the two has stay as they are.
        other: as ``crops``.
        other_mask: as ``mask``.
        config: how.
        rng: of the sample.
    """
    size = crops.shape[-1]
    plan = draw_plan(size, config, rng)
    if plan is None:
        return crops, np.ones(5, np.float32)
    both = mask & other_mask
    windows = _THREE_WINDOWS if crops.ndim == 4 else None
    return blended(crops, other, both, plan), shares(plan, size, mask, both, windows)


def blended(crops: Images, other: Images, both: Mask, plan: MixPlan) -> Images:
    """The crops with the plan's part of the other's, in the slices that both have."""
    weight = plan.weight(crops.shape[-1])
    out = crops.copy()
    out[both] = weight * crops[both] + (1 - weight) * other[both]
    return out


def shares(plan: MixPlan, size: int, mask: Mask, both: Mask, windows: Windows | None) -> NDArray[np.float32]:
    """By condition the share (5,) that is still the sample's own.

    Args:
        plan: what was mixed.
        size: of the images, in pixels.
        mask: slices that the sample has, (windows, S) sagittal or (S,) axial.
        both: those of them that were mixed.
        windows: by condition, of a sagittal sample; None of an axial one.
    """
    share = np.ones(5, np.float32)
    weight = plan.weight(size)
    if windows is not None:
        for condition, rows in windows.items():
            share[condition] = _kept(float(weight.mean()), mask[list(rows)], both[list(rows)])
        return share
    # radiological view: the patient's left is the image's right half
    half = size // 2
    parts = (weight, weight[:, half:], weight[:, :half], weight[:, half:], weight[:, :half])
    for condition, part in enumerate(parts):
        share[condition] = _kept(float(part.mean()), mask, both)
    return share


def _kept(share: float, mask: Mask, both: Mask) -> float:
    """The own share over the slices that are there, of which only those that both have are mixed."""
    return 1.0 - (1.0 - share) * float(both.sum()) / max(int(mask.sum()), 1)


def aligned(own: Sequence[CropSlice], other: Sequence[CropSlice], *, in_mm: bool) -> list[CropSlice]:
    """The other sample's slices at the places of the sample's own that show the same.

    Args:
        own: the sample's slices.
        other: the partner's.
        in_mm: by position, within ``NEAR_MM``, where whole series enter; else by place in the window.
    """
    out = []
    for one in own:
        same = [slice_ for slice_ in other if slice_.window == one.window]
        if not in_mm:
            same = [slice_ for slice_ in same if slice_.step == one.step]
        if not same:
            continue
        nearest = min(same, key=lambda slice_: abs(slice_.position_mm - one.position_mm)) if in_mm else same[0]
        if not in_mm or abs(nearest.position_mm - one.position_mm) <= NEAR_MM:
            out.append(replace(nearest, window=one.window, step=one.step))
    return out
