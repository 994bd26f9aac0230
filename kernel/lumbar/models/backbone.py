"""timm networks as feature extractors, built the same way in training and on Kaggle (never downloading there)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.norm import GroupNorm
from torch import Tensor, nn

from lumbar.config import BACKBONE_NAME, BackboneConfig
from lumbar.errors import ManifestError
from lumbar.rules import require

_TRIED_SIZE = 64  # side in pixels of the image on which a network for images of any size is tried
_is_checked: ContextVar[bool] = ContextVar("_is_checked", default=True)
PIXEL_MEAN, PIXEL_STD = 0.25, 0.25  # of normalised MR images with air; constants of the code, not of a data set


class Backbone(nn.Module):
    """Images (N, C, H, W) in 0..1 → features (N, ``features``); it normalises its input itself."""

    def __init__(self, config: BackboneConfig, in_channels: int = 1, *, size: int) -> None:
        """Build the network.

        Args:
            config: names it.
            in_channels: channels of the images.
            size: side of the images in pixels; networks with windows or position tables are built for one size.

        Raises:
            ManifestError: timm cannot build the network, or it cannot take images of this size.
        """
        super().__init__()
        self.config = config
        self.options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0, "global_pool": "avg"}
        self.options |= size_options(config.name, size)
        self.network = create_timm(config, **self.options)
        self.features = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)  # type: ignore[arg-type]
        self.tried = config.name, in_channels, size if is_fixed_size(config.name) else _TRIED_SIZE
        check_size(self.network, *self.tried)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in 0..1 → (N, features)."""
        return self.network((images - PIXEL_MEAN) / PIXEL_STD)


def is_fixed_size(name: str) -> bool:
    """Whether a timm network is built for one size of images, because of windows or tables of positions."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name.split(".")[0]) else None
    return bool(cfg and cfg.fixed_input_size)


def size_options(name: str, size: int) -> dict[str, Any]:
    """The options of ``create_timm`` for images of ``size`` pixels; none where any size will do."""
    return {"img_size": size} if is_fixed_size(name) else {}


@contextmanager
def sizes_checked_later() -> Iterator[None]:
    """Build networks whose sizes ``check_sizes`` looks at once their weights are there."""
    before = _is_checked.set(False)
    try:
        yield
    finally:
        _is_checked.reset(before)


def check_sizes(network: nn.Module) -> None:
    """Refuse a network of which a timm part cannot take the images that it was built for.

    Raises:
        ManifestError: as ``check_size``.
    """
    for module in network.modules():
        tried = getattr(module, "tried", None)
        if tried is not None:
            check_size(module.network, *tried)  # type: ignore[arg-type]


def check_size(network: nn.Module, name: str, in_channels: int, size: int) -> None:
    """Refuse a network that cannot take images of ``size`` pixels.

    Raises:
        ManifestError: naming the backbone and the size.
    """
    if not _is_checked.get():
        return
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, in_channels, size, size, device=next(network.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ManifestError(
            f"backbone {name}: found images of {size} pixels, expected a size that it can take ({reason})"
        ) from None
    network.train(was_training)


def create_timm(config: BackboneConfig, **options: Any) -> nn.Module:
    """Build a timm network by name, without weights unless the options hold ``pretrained`` (in training only).

    Raises:
        ManifestError: timm does not know the name or refuses an option, or the name is one that timm would look for on
            a hub or in a folder (``hf-hub:…``, ``local-dir:…``).
    """
    require("backbone", config.name, BACKBONE_NAME)
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
    except (RuntimeError, TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError(f"backbone {config.name}: timm {timm.__version__} cannot build it ({reason})") from None
