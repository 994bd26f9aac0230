"""T1, T2 or STIR, told from single slices by a small convolutional network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lumbar.config import SeriesContrastConfig
from lumbar.models.backbone import PIXEL_MEAN, PIXEL_STD
from lumbar.models.examples import Examples, example_size

N_CONTRASTS = 3
_GROUP = 8  # channels that are normalised together: independent of the batch, as GroupNorm is


class SeriesContrastNet(nn.Module):
    """Slices (N, 1, size, size) in 0..1 → logits (N, 3) of T1, T2 and STIR."""

    def __init__(self, config: SeriesContrastConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = 1
        for width in config.widths:
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(width // _GROUP, width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, N_CONTRASTS)

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two slices."""
        return (examples.images(2, example_size(self.config))[:, None],)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 1, size, size) → (N, 3)."""
        features = self.layers((slices - PIXEL_MEAN) / PIXEL_STD).flatten(2)
        return self.head(torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1))
