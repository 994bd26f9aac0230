"""The baseline's network: a timm body without its own pooling, and the head that fastai adds to a body."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lumbar.config import BaselineConfig, check_baseline
from lumbar.models.backbone import PIXEL_MEAN, PIXEL_STD, create_timm, size_options
from lumbar.models.examples import Examples, example_size


class BaselineNet(nn.Module):
    """Whole slices (N, 1, size, size) in 0..1 → logits (N, 3) of one column.

    Body and head follow fastai's ``vision_learner`` (docs.fast.ai/vision.learner, ``create_head``): maximum and mean
    of the last feature map, then twice batch norm, dropout and a linear layer without bias, with a ReLU between.

    Raises:
        ManifestError: a column, description or size that is not possible.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        check_baseline(config)
        self.config = config
        self.body = create_timm(
            config.backbone,
            in_chans=1,
            num_classes=0,
            global_pool="",
            **size_options(config.backbone.name, config.size),
        )
        self.n_features = int(self.body.num_features)  # type: ignore[arg-type]
        self.head = nn.Sequential(
            nn.BatchNorm1d(2 * self.n_features),
            nn.Dropout(config.dropout / 2),
            nn.Linear(2 * self.n_features, config.hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(config.hidden),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, 3, bias=False),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, nn.BatchNorm1d):
                nn.init.constant_(layer.bias, 1e-3)  # as in fastai

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Whole slices."""
        return (examples.whole_slices(example_size(self.config)),)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in 0..1 → (N, 3)."""
        features = self.body((images - PIXEL_MEAN) / PIXEL_STD)
        if features.shape[1] != self.n_features:  # timm's transformers put channels last
            features = features.movedim(-1, 1)
        places = features.flatten(2)  # (N, C, places)
        return self.head(torch.cat([places.amax(dim=2), places.mean(dim=2)], dim=1))
