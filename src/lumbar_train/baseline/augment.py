"""Augmentation of a whole batch at once, like fastai's ``aug_transforms`` without its flip.

Rotation up to 10°, zoom up to 1.1 around a random centre, perspective up to 0.2 along each axis, brightness and
contrast up to 0.2 on the scale of log odds. Each is drawn independently and applied to three images in four
(docs.fast.ai/vision.augment). With the same random numbers the pixels are fastai's; a test compares the two. The
horizontal flip is left out: it would put the belly of a sagittal slice where the back is, which no patient shows. (A
patient mirrored from left to right shows the same slices in reverse order, not flipped slices.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_TURN_DEG = 10.0
MAX_ZOOM = 1.1
MAX_TILT = 0.2
MAX_LIGHT = 0.2
PROBABILITY = 0.75  # that an image gets a change, for each kind of change
_EPS = 1e-7  # values are kept this far from 0 and 1, where log odds are infinite


@dataclass(frozen=True)
class Changes:
    """The changes of each image of a batch; every tensor is (N,).

    Attributes:
        turn_deg: rotation, 0 for none.
        zoom: factor, 1 for none.
        centre_x: centre of the zoom, 0..1 across the image.
        centre_y: the same along the columns.
        tilt_x: perspective, 0 for none.
        tilt_y: the same along the columns.
        light: brightness, 0.5 for no change.
        contrast: factor of the log odds, 1 for none.
    """

    turn_deg: Tensor
    zoom: Tensor
    centre_x: Tensor
    centre_y: Tensor
    tilt_x: Tensor
    tilt_y: Tensor
    light: Tensor
    contrast: Tensor


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment square images.

    Args:
        images: (N, 1, H, W) float in 0..1, H = W.
        generator: on the CPU; the only source of chance.

    Returns:
        images of the same shape and range.
    """
    return change(images, draw(len(images), generator))


def draw(n: int, generator: torch.Generator) -> Changes:
    """Draw the changes of ``n`` images, on the CPU."""
    share = torch.rand(8, n, generator=generator)
    is_changed = torch.rand(8, n, generator=generator) < PROBABILITY
    shift = (2 * share - 1) * is_changed  # -1..1, and 0 where nothing changes
    return Changes(
        turn_deg=MAX_TURN_DEG * shift[0],
        zoom=1 + (MAX_ZOOM - 1) * share[1] * is_changed[1],
        centre_x=share[2],
        centre_y=share[3],
        tilt_x=MAX_TILT * shift[4],
        tilt_y=MAX_TILT * shift[5],
        light=0.5 + 0.5 * MAX_LIGHT * shift[6],
        contrast=torch.exp(-math.log(1 - MAX_LIGHT) * shift[7]),
    )


def change(images: Tensor, changes: Changes) -> Tensor:
    """Apply changes to square images (N, 1, H, W) in 0..1: one warp, then brightness and contrast."""
    on_device = Changes(**{name: value.to(images.device, images.dtype) for name, value in vars(changes).items()})
    warped = F.grid_sample(
        images, _grid(on_device, images), mode="bilinear", padding_mode="reflection", align_corners=True
    )
    odds = torch.logit(warped, eps=_EPS)  # black stays black there, white white
    light, contrast = (value.view(-1, 1, 1, 1) for value in (on_device.light, on_device.contrast))
    return torch.sigmoid((odds + torch.logit(light)) * contrast)


def _grid(changes: Changes, images: Tensor) -> Tensor:
    """Where each pixel is taken from, (N, H, W, 2): -1 and 1 are the centres of the outermost pixels."""
    n, _, height, width = images.shape
    matrix = _perspective(changes) @ _affine(changes)  # (N, 3, 3)
    y = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype)
    x = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype)
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    base = torch.stack([x, y, torch.ones_like(x)])
    mapped = (matrix @ base.reshape(1, 3, -1)).view(n, 3, height, width)
    return (mapped[:, :2] / mapped[:, 2:]).permute(0, 2, 3, 1)


def _affine(changes: Changes) -> Tensor:
    """Rotation and zoom, (N, 3, 3); the zoomed window stays inside the image wherever its centre is."""
    angle = torch.deg2rad(changes.turn_deg)
    cos, sin, scale = torch.cos(angle), torch.sin(angle), 1 / changes.zoom
    x, y = ((1 - scale) * (2 * place - 1) for place in (changes.centre_x, changes.centre_y))
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    return _matrix(
        [scale * cos, scale * sin, cos * x + sin * y],
        [-scale * sin, scale * cos, cos * y - sin * x],
        [zero, zero, one],
    )


def _perspective(changes: Changes) -> Tensor:
    """Perspective, (N, 3, 3): takes (X - t_y·X·Y, Y - t_x·X·Y) to (X, Y) for the corners X, Y = ±1.

    One side of the image grows and the opposite one shrinks. fastai solves eight equations for each image; they have a
    closed form. The matrix from the corners to the shifted corners is [[1-u², -uv, v], [-uv, 1-v², u], [v, u, 1]] with
    u = t_y and v = t_x; its inverse, times 1-u²-v², is the one below.
    """
    u, v = changes.tilt_y, changes.tilt_x
    s = 1 - u * u - v * v
    one, both = torch.ones_like(s), 2 * u * v / s
    last_x, last_y = -v * (1 + u * u - v * v) / s, -u * (1 - u * u + v * v) / s
    return _matrix([one, both, last_x], [both, one, last_y], [last_x, last_y, one])


def _matrix(*rows: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
