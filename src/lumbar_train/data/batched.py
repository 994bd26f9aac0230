"""Augmentation of whole batches on the device of a fit: warp, mixing, intensities and holes.

The loader hands out cut-outs of the slices in their own pixels, the affine map of each, and what was drawn for each
sample (``RawImages`` as tensors whose names begin with ``raw_``); ``finished`` makes the images that a network takes.
The same code runs on tensors of a CPU. Every draw but the noise comes from the sample's own generator; the noise comes
from a generator that is seeded from it, whose numbers differ between a CPU and a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lumbar.dicom import Stack
from lumbar.geometry import Grid, prefiltered
from lumbar.study import Study
from lumbar_train.data.augment import AugmentConfig, covered
from lumbar_train.data.mixing import MixPlan

Batch = dict[str, Tensor]
KNOTS = 5  # of the tone curve, as in ``augment.ToneCurve``
PREFIX = "raw_"
_MARGIN = 2  # pixels about a cut-out, so that interpolation at its edge sees its neighbours


@dataclass(frozen=True)
class View:
    """One slice of a stack on a grid, and which of the sample's intensity draws it takes."""

    study: Study
    stack: Stack
    index: int
    grid: Grid
    group: int = 0
    is_flipped: bool = False


def cut_out(view: View) -> tuple[NDArray[np.float16], NDArray[np.float64]]:
    """The part of a slice that its grid reads, scaled to 0..1 but not cut off there, and the map into its pixels.

    Where the grid is coarser than the pixels the part is smoothed first, as ``lumbar.geometry.sample`` does.
    """
    grid, stack = view.grid, view.stack
    low, high = view.study.window(stack.series_id)
    image = prefiltered(view.study.raw(stack, view.index), grid)
    corners = grid.to_source(np.array([(0, 0), (grid.size, 0), (0, grid.size), (grid.size, grid.size)]) - 0.5)
    rows, columns = image.shape
    x0, y0 = (max(0, int(np.floor(v)) - _MARGIN) for v in corners.min(axis=0))
    x1, y1 = (min(n, int(np.ceil(v)) + 1 + _MARGIN) for v, n in zip(corners.max(axis=0), (columns, rows), strict=True))
    part = image[y0 : max(y1, y0), x0 : max(x1, x0)]
    scaled = (part - np.float32(low)) * np.float32(1.0 / (high - low))
    scaled = np.clip(1.0 - scaled if stack.is_inverted else scaled, -8.0, 8.0)  # in range of half precision
    matrix = grid.matrix.copy()
    matrix[:, 2] -= (x0, y0)
    if view.is_flipped:  # grid x runs backwards
        matrix[:, 2] += (grid.size - 1) * matrix[:, 0]
        matrix[:, 0] = -matrix[:, 0]
    return scaled.astype(np.float16), matrix


def raw_images(views: Sequence[View], mask: NDArray[np.bool_], size: int, name: str = "") -> Batch:
    """Cut-outs of one sample's slices, in the order of the places that ``mask`` holds.

    Args:
        views: one for each place.
        mask: where slices stand in the sample's images; any shape, the last axis may be padded in a batch.
        size: of the images to make, in pixels.
        name: of a second set of images (``other_``).
    """
    parts = [cut_out(view) for view in views]
    height, width = (max((part.shape[k] for part, _ in parts), default=1) for k in (0, 1))
    patches = np.zeros((len(parts), max(height, 1), max(width, 1)), np.float16)
    for k, (part, _) in enumerate(parts):
        patches[k, : part.shape[0], : part.shape[1]] = part
    matrices = np.stack([matrix for _, matrix in parts]) if parts else np.zeros((0, 2, 3))
    return {
        f"{PREFIX}{name}patches": torch.from_numpy(patches),
        f"{PREFIX}{name}matrices": torch.from_numpy(matrices.astype(np.float32)),
        f"{PREFIX}{name}mask": torch.from_numpy(mask[None].copy()),
        f"{PREFIX}{name}group": torch.tensor([view.group for view in views], dtype=torch.int64),
        f"{PREFIX}{name}size": torch.empty(0, size),  # a size that needs no look at the device
    }


def drawn_intensities(config: AugmentConfig | None, rng: np.random.Generator, groups: int = 1) -> Batch:
    """What ``augment.photometric`` would draw, for each of a sample's groups of slices: tensors (1, groups, …)."""
    most = max(config.holes[1], 1) if config is not None and config.hole else 1
    heights = np.tile(np.linspace(0, 1, KNOTS + 1, dtype=np.float32), (groups, 1))
    field = np.zeros((groups, 4, 4), np.float32)
    plain = np.zeros((groups, 3), np.float32)  # inverted, sigma of the blur, sigma of the noise
    boxes = np.zeros((groups, most, 4), np.float32)
    for group in range(groups if config is not None else 0):
        assert config is not None
        steps = rng.random(KNOTS) ** (1 + 2 * config.contrast) + 0.15 * (1 - config.contrast) + 0.02
        curve = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
        heights[group] += config.contrast * (curve - heights[group])
        if rng.random() < 0.6:
            field[group] = config.shading * rng.standard_normal((4, 4))
        plain[group, 0] = rng.random() < config.invert
        plain[group, 1] = rng.uniform(0.4, 1.2) if rng.random() < config.blur else 0.0
        plain[group, 2] = config.noise if rng.random() < 0.6 else 0.0
        if rng.random() < config.hole:
            drawn = _drawn_boxes(config, rng)
            boxes[group, : len(drawn)] = drawn
    seed = torch.tensor([[int(rng.integers(2**62))]])
    arrays = {"heights": heights, "field": field, "plain": plain, "boxes": boxes}
    return {f"{PREFIX}{name}": torch.from_numpy(array[None]) for name, array in arrays.items()} | {
        f"{PREFIX}seed": seed
    }


def _drawn_boxes(config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Boxes (n, 4) x0, y0, x1, y1 as shares of the side: several small ones, or one of 2 to 12 % of the area."""
    if config.holes[1] > 1:
        n = int(rng.integers(config.holes[0], config.holes[1] + 1))
        sides = rng.uniform(*config.hole_side, (n, 2))
    else:
        area, ratio = rng.uniform(0.02, 0.12), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        sides = np.minimum([[np.sqrt(area * ratio), np.sqrt(area / ratio)]], 1.0)
    corners = rng.random((len(sides), 2)) * (1 - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def drawn_mix(plan: MixPlan | None) -> Batch:
    """A plan as a tensor (1, 5): the box and the amount; nothing mixed is an amount of 0."""
    box, amount = (plan.box, plan.amount) if plan is not None else ((0, 0, 0, 0), 0.0)
    return {f"{PREFIX}mix": torch.tensor([[*map(float, box), amount]])}


def joined(samples: Sequence[Batch]) -> Batch:
    """The ``raw_`` tensors of several samples, or of several batches of them, as one batch."""
    out: Batch = {}
    for name in (name for name in samples[0] if name.startswith(PREFIX)):
        parts = [sample[name] for sample in samples]
        if name.endswith("patches") or name.endswith("mask"):
            shape = [max(part.shape[k] for part in parts) for k in range(1, parts[0].dim())]
            parts = [_padded(part, shape) for part in parts]
        elif name.endswith("group"):
            groups = [sample[f"{PREFIX}heights"].shape[:2] for sample in samples]
            firsts = np.cumsum([0, *(rows * each for rows, each in groups)])
            parts = [part + int(first) for part, first in zip(parts, firsts, strict=False)]
        out[name] = torch.cat(parts)
    return out


def _padded(part: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros after the end of every axis but the first."""
    pads = [
        pad for have, want in zip(reversed(part.shape[1:]), reversed(shape), strict=True) for pad in (0, want - have)
    ]
    return F.pad(part, pads) if any(pads) else part


def finished(batch: Batch) -> Batch:
    """The batch with its images made (``crops`` where it has labels of levels, else ``images``); others as they are."""
    if f"{PREFIX}patches" not in batch:
        return batch
    raw = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
    rest = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
    with torch.no_grad(), torch.autocast(raw["patches"].device.type, enabled=False):
        images = _images(raw)
    size = images.shape[-1]
    if "mask" in rest:
        images = images.view(*rest["mask"].shape, size, size)
    return rest | {"crops" if "level" in rest else "images": images}


def _images(raw: Batch) -> Tensor:
    """(rows, …, size, size) float32 in 0..1; places without a slice are 0."""
    mask, size = raw["mask"], raw["size"].shape[1]
    flat = torch.nonzero(mask.reshape(-1)).squeeze(1)
    images = warped(raw["patches"], raw["matrices"], size)
    if "mix" in raw and len(raw["other_patches"]):
        images = _mixed(raw, images, flat, size)
    images = coloured(images, raw, flat // mask[0].numel())
    out = images.new_zeros(mask.numel(), size, size)
    return out.index_copy(0, flat, images).view(*mask.shape, size, size)


def warped(patches: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Cut-outs (N, h, w) on the grids that their maps (N, 2, 3) give: (N, size, size) in 0..1, 0 outside."""
    height, width = patches.shape[1:]
    axis = torch.arange(size, device=patches.device, dtype=torch.float32)
    x = (
        matrices[:, :, 0, None, None] * axis
        + (matrices[:, :, 1, None] * axis)[..., None]
        + matrices[:, :, 2, None, None]
    )
    # grid_sample wants the pixels' outer edges at -1 and 1
    scale = torch.tensor([2.0 / width, 2.0 / height], device=patches.device)
    places = (x.permute(0, 2, 3, 1) + 0.5) * scale - 1.0
    out = F.grid_sample(patches.float()[:, None], places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out[:, 0].clamp(0, 1)


def _mixed(raw: Batch, images: Tensor, flat: Tensor, size: int) -> Tensor:
    """The partner's slices blended into those that stand at the same places."""
    mask, other = raw["mask"], torch.nonzero(raw["other_mask"].reshape(-1)).squeeze(1)
    place_of = torch.full((mask.numel(),), -1, device=flat.device)
    place_of[flat] = torch.arange(len(flat), device=flat.device)
    x0, y0, x1, y1, amount = raw["mix"][other // mask[0].numel()].unbind(1)
    axis = torch.arange(size, device=flat.device)
    across = (x0[:, None] <= axis) & (axis < x1[:, None])
    down = (y0[:, None] <= axis) & (axis < y1[:, None])
    theirs = amount[:, None, None] * (down[:, :, None] & across[:, None, :])
    rows = place_of[other]
    blended = (1 - theirs) * images[rows] + theirs * warped(raw["other_patches"], raw["other_matrices"], size)
    return images.index_copy(0, rows, blended)


def coloured(images: Tensor, raw: Batch, row_of: Tensor) -> Tensor:
    """Tone curve, shading, inversion, blur, noise and holes of images (N, size, size), each by its group's draws.

    ``row_of`` (N,), ascending, is the sample of each. On a CPU it goes sample by sample, which stay in its cache.
    """
    if not len(images):
        return images
    if images.device.type != "cpu":
        return _coloured(images, raw, raw["group"], row_of)
    counts = torch.bincount(row_of).tolist()
    parts = zip(*(torch.split(each, counts) for each in (images, raw["group"], row_of)), strict=True)
    return torch.cat([_coloured(some, raw, group, rows) for some, group, rows in parts if len(some)])


def _coloured(images: Tensor, raw: Batch, group: Tensor, row_of: Tensor) -> Tensor:
    size = images.shape[-1]
    heights, plain = raw["heights"].flatten(0, 1), raw["plain"].flatten(0, 1)
    steps = heights[group].diff(dim=1)
    out = torch.zeros_like(images)
    for k in range(KNOTS):
        out.add_((images * KNOTS).sub_(k).clamp_(0, 1).mul_(steps[:, k, None, None]))
    used, group_of = torch.unique(group, return_inverse=True)
    field = raw["field"].flatten(0, 1)[used][:, None]
    field = F.interpolate(field, size=(size, size), mode="bicubic", align_corners=True)
    out.mul_(torch.exp(field[:, 0].clamp(-1.5, 1.5))[group_of]).clamp_(0, 1)
    inverted, blur, noise = (plain[group, k, None, None] for k in range(3))
    out = torch.where(inverted > 0, 1 - out, out)
    out = _blurred(out, blur)
    out = (out + noise * _noise(out, raw["seed"][:, 0], row_of)).clamp_(0, 1)
    return out * ~covered(raw["boxes"].flatten(0, 1)[used], size)[group_of]


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """A 3 × 3 Gaussian by image, as torchvision's; sigma (N, 1, 1), 0 leaves an image as it is."""
    side = torch.exp(-0.5 / sigma.clamp(min=1e-3) ** 2)
    kernel = torch.cat([side, torch.ones_like(side), side], dim=2)
    kernel = (kernel / kernel.sum(dim=2, keepdim=True))[:, None]  # (N, 1, 1, 3)
    padded = F.pad(images[None], (1, 1, 1, 1), mode="reflect")
    across = F.conv2d(padded, kernel, groups=len(images))
    return F.conv2d(across, kernel.transpose(2, 3), groups=len(images))[0]


def _noise(images: Tensor, seeds: Tensor, row_of: Tensor) -> Tensor:
    """Standard normal numbers, of each sample from its own seed."""
    rows, counts = torch.unique_consecutive(row_of, return_counts=True)
    parts = []
    for seed, n in zip(seeds[rows].tolist(), counts.tolist(), strict=True):
        generator = torch.Generator(device=images.device).manual_seed(seed)
        parts.append(torch.randn(n, *images.shape[1:], generator=generator, device=images.device))
    return torch.cat(parts)
