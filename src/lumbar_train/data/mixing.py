"""CutMix (Yun et al. 2019) and mixup (Zhang et al. 2018) of one level's crops, aware of what each condition sees.

The partner is drawn from the sample's own generator and shows the same level, so that neither ranks nor batches change
what is mixed. Each condition gets its own share of either label: by the window that it is read from, by its half of an
axial image, and by the slices that both samples have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MixConfig:
    """Chances of either, and the parameter of the Beta distribution that the share is drawn from."""

    cutmix: float = 0.0
    mixup: float = 0.0
    alpha: float = 1.0


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
    draw, ratio = rng.random(), float(rng.beta(config.alpha, config.alpha))
    corner = rng.random(2)
    share = np.ones(5, np.float32)
    size = crops.shape[-1]
    if draw < config.cutmix:
        keep = ~_box(size, ratio, corner)
    elif draw < config.cutmix + config.mixup:
        keep = np.full((size, size), 1.0 - ratio)
    else:
        return crops, share
    weight = keep.astype(np.float32)
    both = mask & other_mask
    out = crops.copy()
    out[both] = weight * crops[both] + (1 - weight) * other[both]
    if crops.ndim == 4:  # windows: canal, left foramen, right foramen
        for condition in range(3):
            share[condition] = _kept(float(weight.mean()), mask[condition], both[condition])
    else:  # radiological view: the patient's left is the image's right half
        half = size // 2
        parts = (weight, weight[:, half:], weight[:, :half], weight[:, half:], weight[:, :half])
        for condition, part in enumerate(parts):
            share[condition] = _kept(float(part.mean()), mask, both)
    return out, share


def _box(size: int, ratio: float, corner: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A square of ``ratio`` of the image's area, wholly inside it."""
    side = round(size * ratio**0.5)
    y, x = (round(float(c) * (size - side)) for c in corner)
    box = np.zeros((size, size), bool)
    box[y : y + side, x : x + side] = True
    return box


def _kept(share: float, mask: Mask, both: Mask) -> float:
    """The own share over the slices that are there, of which only those that both have are mixed."""
    return 1.0 - (1.0 - share) * float(both.sum()) / max(int(mask.sum()), 1)
