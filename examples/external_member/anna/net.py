"""The network: some axial slices of one level → grades of its left and right recess."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Slices (L, S, size, size) in 0..1 and which of them are there (L, S) → logits (L, 2 sides, 3 grades)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.slices = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, 6)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        n_levels, n_slices = mask.shape
        features = self.slices(images.flatten(0, 1)[:, None]).view(n_levels, n_slices, -1)
        there = mask[..., None].to(features.dtype)
        mean = (features * there).sum(dim=1) / torch.clamp(there.sum(dim=1), min=1)
        return self.head(mean).view(n_levels, 2, 3)
