"""Augmentation of normalised images: contrast first of all, then shading, noise, blur, holes.

Geometry (shift, turn, zoom, mirror) is not here: it goes into the sampling grid, so that each image is interpolated
once and its points ride on the same matrix. Intensities go through torchvision's transforms; all slices of a sequence
get the same transform. Every draw comes from the sample's own generator, never from a rank or a worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; the defaults are for classifiers, ``LOCALISER_AUGMENT`` for localisers that must stand any scanner.

    ``SOLUTION_AUGMENT`` is the solution's for classifiers. Turn, zoom and shift of classifiers are drawn from normal
    distributions of half these sizes, or with ``uniform`` evenly between them. With ``on_device`` the loader hands out
    cut-outs of the slices, and the device of the fit warps, colours and mixes whole batches of them.
    """

    shift_mm: float = 3.0
    turn_deg: float = 8.0
    zoom: float = 0.12
    stretch: float = 0.0  # of one axis against the other, and as much shear (localisers)
    slices: float = 0.15  # chance that a window is off by one slice
    contrast: float = 0.5  # strength of the random tone curve, 0..1
    invert: float = 0.0  # chance that dark and bright change places
    shading: float = 0.3
    noise: float = 0.03
    blur: float = 0.2  # chance
    hole: float = 0.1  # chance
    holes: tuple[int, int] = (1, 1)  # how many, where there are any; several are small squares
    hole_side: tuple[float, float] = (0.01, 0.08)  # of each of several, a share of the image's side
    shift: float = 0.0  # of a classifier's crop across, a share of its side
    uniform: bool = False
    move: float = 1.0  # chance that a classifier's crop is turned, zoomed and shifted at all
    keep_slices: tuple[float, float] = (1.0, 1.0)  # share of a classifier's slices that is kept, at random
    on_device: bool = False


LOCALISER_AUGMENT = AugmentConfig(
    shift_mm=30.0,
    turn_deg=22.0,
    zoom=0.35,
    stretch=0.15,
    contrast=1.0,
    invert=0.05,
    shading=0.7,
    noise=0.08,
    blur=0.4,
    hole=0.3,
)

# configs/cfg_dh_12y8.py and cfg_dh_29a2.py of the solution's public code: ShiftScaleRotate of 0.2 across, 0.2, 30
# degrees with probability 0.7; 10 to 30 holes of 0.01 to 0.08 of the side with probability 0.8; brightness and contrast
# by 0.1, for which our tone curve stands. Its crop to three quarters of the width, a further shift by an eighth, is not
# taken over. Shading, noise and blur are ours and stay mild.
SOLUTION_AUGMENT = AugmentConfig(
    shift_mm=0.0,
    shift=0.2,
    turn_deg=30.0,
    zoom=0.2,
    uniform=True,
    move=0.7,
    contrast=0.3,
    shading=0.1,
    noise=0.02,
    hole=0.8,
    holes=(10, 30),
    slices=0.0,
    on_device=True,
)


class ToneCurve(v2.Transform):  # type: ignore[misc]
    """A random smooth curve from grey to grey: knots displaced from the diagonal, monotone or nearly so."""

    def __init__(self, strength: float, knots: int = 5) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError(f"knots: found {knots}, expected at least 2")
        self.strength, self.knots = strength, knots

    def make_params(self, flat_inputs: list[Tensor]) -> dict[str, Tensor]:
        """Heights of the curve at evenly spaced greys."""
        steps = torch.rand(self.knots) ** (1 + 2 * self.strength) + 0.15 * (1 - self.strength) + 0.02
        heights = torch.cat([torch.zeros(1), torch.cumsum(steps, 0)])
        heights = heights / heights[-1]
        straight = torch.linspace(0, 1, self.knots + 1)
        return {"heights": straight + self.strength * (heights - straight)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Piecewise linear look-up."""
        heights = params["heights"].tolist()
        x = inpt * self.knots
        out = torch.full_like(inpt, heights[0])
        for k in range(self.knots):  # each piece adds what lies within it: a gather by pixel takes five times as long
            low, high = (None if k == 0 else 0.0), (None if k == self.knots - 1 else 1.0)
            out.add_((x - k).clamp_(low, high), alpha=heights[k + 1] - heights[k])
        return out


class Shading(v2.Transform):  # type: ignore[misc]
    """A smooth field multiplied in, as surface coils do."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Tensor]) -> dict[str, Tensor]:
        """A 4 × 4 field in log units."""
        return {"field": self.strength * torch.randn(1, 1, 4, 4)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Multiply by the field, blown up to the image."""
        field = torch.nn.functional.interpolate(
            params["field"], size=inpt.shape[-2:], mode="bicubic", align_corners=True
        )
        return (inpt * torch.exp(field[0, 0].clamp(-1.5, 1.5))).clamp(0, 1)


class Holes(v2.Transform):  # type: ignore[misc]
    """Several small squares of zeros, the same in every image."""

    def __init__(self, n: tuple[int, int], side: tuple[float, float]) -> None:
        super().__init__()
        self.n, self.side = n, side

    def make_params(self, flat_inputs: list[Tensor]) -> dict[str, Tensor]:
        """Boxes (n, 4) x0, y0, x1, y1 as shares of the image's side."""
        n = int(torch.randint(self.n[0], self.n[1] + 1, ()))
        low, high = self.side
        sides = low + (high - low) * torch.rand(n, 2)
        corners = torch.rand(n, 2) * (1 - sides)
        return {"boxes": torch.cat([corners, corners + sides], dim=1)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Zeros inside the boxes."""
        return inpt * ~covered(params["boxes"][None], inpt.shape[-1])[0]


def covered(boxes: Tensor, size: int) -> Tensor:
    """Which pixels (N, size, size) lie in any of the boxes (N, K, 4), shares of the image's side."""
    centre = (torch.arange(size, device=boxes.device) + 0.5) / size
    across = (boxes[..., 0, None] <= centre) & (centre < boxes[..., 2, None])  # (N, K, size)
    down = (boxes[..., 1, None] <= centre) & (centre < boxes[..., 3, None])
    return torch.einsum("nky,nkx->nyx", down.float(), across.float()) > 0


def photometric(config: AugmentConfig) -> v2.Compose:
    """The intensity part as one torchvision transform over (…, H, W) in 0..1."""
    steps: list[v2.Transform] = [ToneCurve(config.contrast), v2.RandomApply([Shading(config.shading)], p=0.6)]
    if config.invert:
        steps.append(v2.RandomInvert(p=config.invert))  # no lambda: loader processes pickle it
    if config.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(3, (0.4, 1.2))], p=config.blur))
    steps.append(v2.RandomApply([v2.GaussianNoise(0.0, config.noise)], p=0.6))
    if config.hole and config.holes[1] > 1:
        steps.append(v2.RandomApply([Holes(config.holes, config.hole_side)], p=config.hole))
    elif config.hole:
        steps.append(v2.RandomErasing(p=config.hole, scale=(0.02, 0.12), value=0.0))
    return v2.Compose(steps)


def apply(transform: v2.Compose, images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Run a transform over (…, H, W) float32 with draws that come from ``rng`` alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it seeds the GPUs as well, which costs 2 ms where there is none
        torch.default_generator.manual_seed(int(rng.integers(2**62)))
        tensor = torch.from_numpy(np.array(images, dtype=np.float32))  # a copy: a reversed series has negative strides
        shape = tensor.shape
        out: Tensor = transform(tensor.reshape(-1, *shape[-2:])).reshape(shape).to(torch.float32)
        return out
