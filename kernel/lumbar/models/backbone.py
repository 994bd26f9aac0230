"""timm networks as feature extractors, built the same way in training and on Kaggle (never downloading there)."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from timm.layers.norm import GroupNorm
from torch import Tensor, nn

from lumbar.config import BACKBONE_NAME, BackboneConfig
from lumbar.errors import ManifestError
from lumbar.rules import demand

PIXEL_MEAN, PIXEL_STD = 0.25, 0.25  # of normalised MR, air included; a constant of the code, not of a data set


class Backbone(nn.Module):
    """Images (N, C, H, W) in 0..1 → features (N, ``features``). Normalisation lives inside; no caller can differ."""

    def __init__(self, config: BackboneConfig, in_channels: int = 1) -> None:
        super().__init__()
        self.config = config
        self.options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0, "global_pool": "avg"}
        self.network = create_timm(config, **self.options)
        with torch.no_grad():
            was_training = self.network.training
            self.features = int(self.network.eval()(torch.zeros(1, in_channels, 64, 64)).shape[-1])
            self.network.train(was_training)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in 0..1 → (N, features)."""
        return self.network((images - PIXEL_MEAN) / PIXEL_STD)


def create_timm(config: BackboneConfig, **options: Any) -> nn.Module:
    """A timm network by name, without weights unless ``pretrained`` is among the options, as in training only.

    Raises:
        ManifestError: timm does not know the name or refuses an option; a name that timm would look for on a hub or in
            a folder (``hf-hub:…``, ``local-dir:…``) is refused before timm sees it.
    """
    demand("backbone", config.name, BACKBONE_NAME)
    if config.channels:
        options["channels"] = config.channels
    if config.stem_width:
        options["stem_width"] = config.stem_width
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.norm == "group":
        options["norm_layer"] = partial(GroupNorm, num_groups=4)
    elif config.norm != "batch":
        raise ManifestError(f"backbone {config.name}: found norm {config.norm!r}, expected 'batch' or 'group'")
    try:
        return timm.create_model(config.name, **({"pretrained": False} | options))
    except (RuntimeError, TypeError) as error:
        raise ManifestError(f"backbone {config.name}: timm {timm.__version__} cannot build it ({error})") from None
