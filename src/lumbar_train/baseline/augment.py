"""Augmentation of a whole batch at once: one warp and one change of light, of the kinds that fastai's default has.

Which kinds, and how much, follow ``aug_transforms`` (docs.fast.ai/vision.augment): turn up to 10°, zoom to 1.1, a
perspective tilt, light; each of the two steps for three images in four. Its horizontal flip is left out: a sagittal
slice flipped so has the belly where the back is, which no patient shows, and a patient mirrored left to right shows
the same slices in reverse order, never a flipped slice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_TURN_DEG = 10.0
MAX_ZOOM = 1.1
MAX_TILT = 0.1
MAX_LIGHT = 0.2
SHARE = 0.75


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 1, H, W) float in 0..1 → the same shape and range; ``generator`` (on the CPU) decides everything."""
    n = len(images)
    draw = torch.rand(8, n, generator=generator).to(images.device)
    grid = _grid(draw[:5], images).to(images.dtype)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    is_lit = (draw[5] < SHARE).to(images.dtype).view(n, 1, 1, 1)
    # as fastai does, on the scale of log odds: black stays black, white stays white
    shift = torch.logit((0.5 + MAX_LIGHT * (draw[6] - 0.5)).view(n, 1, 1, 1)) * is_lit
    low, high = math.log(1 - MAX_LIGHT), -math.log(1 - MAX_LIGHT)
    gain = torch.exp((low + (high - low) * draw[7]).view(n, 1, 1, 1) * is_lit)
    odds = torch.logit(warped.clamp(1e-3, 1 - 1e-3))
    return torch.sigmoid((odds + shift) * gain).to(images.dtype)


def _grid(draw: Tensor, images: Tensor) -> Tensor:
    """Where each pixel is taken from: (N, H, W, 2) in -1..1, a turn, a zoom around a drawn centre, and a tilt."""
    n, _, height, width = images.shape
    is_warped = (draw[0] < SHARE).float()
    angle = torch.deg2rad((2 * draw[1] - 1) * MAX_TURN_DEG) * is_warped
    scale = 1 / (1 + (MAX_ZOOM - 1) * draw[2] * is_warped)
    tilt_x, tilt_y = ((2 * draw[k] - 1) * MAX_TILT * is_warped for k in (3, 4))
    room = 1 - scale  # the zoomed window stays inside the image, wherever its centre is drawn
    zero = torch.zeros_like(angle)
    matrix = torch.stack(
        [
            torch.stack([scale * torch.cos(angle), -scale * torch.sin(angle), room * (2 * draw[3] - 1)], -1),
            torch.stack([scale * torch.sin(angle), scale * torch.cos(angle), room * (2 * draw[4] - 1)], -1),
            torch.stack([tilt_x, tilt_y, zero + 1], -1),
        ],
        dim=1,
    )  # (N, 3, 3)
    y = (torch.arange(height, device=images.device) + 0.5) * 2 / height - 1
    x = (torch.arange(width, device=images.device) + 0.5) * 2 / width - 1
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    base = torch.stack([x, y, torch.ones_like(x)])
    mapped = (matrix @ base.reshape(1, 3, -1)).view(n, 3, height, width)
    return (mapped[:, :2] / mapped[:, 2:]).permute(0, 2, 3, 1)
