"""Localisers that regress coordinates, as solutions 05b5 and 14p2 do, with their presence loss corrected."""

from __future__ import annotations

from torch import Tensor, nn

from lumbar.config import AxialRegressionConfig, SagittalRegressionConfig
from lumbar.models.backbone import Backbone
from lumbar.models.examples import Examples, example_size


class SagittalRegressionNet(nn.Module):
    """Five neighbouring slices (N, 5, size, size) in 0..1 → (N, 11): five levels × (x, y) in 0..1, presence logit.

    Presence is one binary logit for each slice (is a level marked on it or near it?), not a softmax over the batch.
    """

    def __init__(self, config: SagittalRegressionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, config.context, size=config.size)
        self.head = nn.Linear(self.backbone.features, 11)

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two slices with their neighbours."""
        return (examples.with_neighbours(2, example_size(self.config), self.config.context),)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, context, size, size) → (N, 11)."""
        return self.head(self.backbone(slices))


class AxialRegressionNet(nn.Module):
    """One axial slice (N, 1, size, size) in 0..1 → (N, 4): left x, y, right x, y in 0..1."""

    def __init__(self, config: AxialRegressionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, size=config.size)
        self.head = nn.Linear(self.backbone.features, 4)

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two slices."""
        return (examples.images(2, example_size(self.config))[:, None],)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 1, size, size) → (N, 4)."""
        return self.head(self.backbone(slices))
