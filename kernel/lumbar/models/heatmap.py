"""Heatmap localiser: a U-Net over a fixed millimetre grid, with tissue segmentation as an auxiliary output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumbar.config import BackboneConfig, HeatmapConfig
from lumbar.models.backbone import PIXEL_MEAN, PIXEL_STD, check_size, create_timm, is_fixed_size, size_options
from lumbar.models.examples import Examples, example_size

GROUPS = 8
INITIAL_POINT_BIAS = -4.0  # sigmoid 0.02: training starts with almost empty heatmaps, as the true ones are


def _block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Two 3 × 3 convolutions with GroupNorm, whose statistics do not depend on the other images of the batch."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(GROUPS, n_out),
        nn.SiLU(inplace=True),
        nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, n_out),
        nn.SiLU(inplace=True),
    )


class PlainEncoder(nn.Module):
    """Features at strides 2, 4, 8, …, with one block for each stride."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (in_channels, *widths)
        self.blocks = nn.ModuleList(_block(a, b, stride=2) for a, b in zip(sizes, widths, strict=False))
        self.widths = widths

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) → features, finest first."""
        out = []
        for block in self.blocks:
            images = block(images)
            out.append(images)
        return out


class TimmEncoder(nn.Module):
    """The same features from a timm network (``features_only``)."""

    def __init__(self, in_channels: int, name: str, size: int) -> None:
        super().__init__()
        self.config = BackboneConfig(name)
        self.options: dict[str, Any] = {"in_chans": in_channels, "features_only": True} | size_options(name, size)
        self.network = create_timm(self.config, **self.options)
        self.widths = tuple(self.network.feature_info.channels())  # type: ignore[union-attr,operator]
        self.tried = (name, in_channels, size) if is_fixed_size(name) else None
        if self.tried is not None:
            check_size(self.network, *self.tried)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) → features, finest first; timm's window transformers put channels last."""
        levels = self.network(images)
        return [
            level if level.shape[1] == width else level.movedim(-1, 1)
            for level, width in zip(levels, self.widths, strict=True)
        ]


class HeatmapNet(nn.Module):
    """Slices with their neighbours (N, context, size, size) in 0..1 → point and segment logits at half resolution.

    Returns (N, points + segments, size / 2, size / 2): sigmoid over the first ``points`` channels gives, per pixel,
    how likely the point lies there *in this slice*; softmax over the rest gives tissue.
    """

    def __init__(self, config: HeatmapConfig) -> None:
        super().__init__()
        self.config = config
        encoder = TimmEncoder(config.context, config.backbone, config.size) if config.backbone else None
        self.encoder = encoder or PlainEncoder(config.context, config.widths)
        widths = self.encoder.widths
        merged = [min(width, 128) // GROUPS * GROUPS or GROUPS for width in widths]
        self.up = nn.ModuleList()
        coarse = widths[-1]
        for i in range(len(widths) - 2, -1, -1):  # from the coarsest skip to the finest
            self.up.append(_block(coarse + widths[i], merged[i]))
            coarse = merged[i]
        self.head = nn.Conv2d(merged[0], config.points + config.segments, 1)
        with torch.no_grad():
            self.head.bias[: config.points] = INITIAL_POINT_BIAS  # type: ignore[index]

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two slices with their neighbours."""
        return (examples.with_neighbours(2, example_size(self.config), self.config.context),)

    def forward(self, images: Tensor) -> Tensor:
        """(N, context, size, size) → logits (N, points + segments, size / 2, size / 2)."""
        levels = self.encoder((images - PIXEL_MEAN) / PIXEL_STD)
        x = levels[-1]
        for block, skip in zip(self.up, levels[-2::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        half = (images.shape[-2] // 2, images.shape[-1] // 2)
        if x.shape[-2:] != half:  # a backbone whose finest features are coarser than stride 2
            x = F.interpolate(x, size=half, mode="bilinear", align_corners=False)
        return self.head(x)
