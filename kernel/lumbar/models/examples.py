"""What a network needs to make an example of its input: a source of seeded pixels, and the size to ask for."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from lumbar.models.backbone import is_fixed_size

_SIZE = 128  # side of example images in pixels: small, so that a probe takes little time


class Examples(Protocol):
    """A source of seeded pixels."""

    seed: int

    def images(self, n: int, size: int) -> Tensor:
        """Images (n, size, size) float32 in 0..1."""

    def with_neighbours(self, n: int, size: int, context: int) -> Tensor:
        """Slices (n, context, size, size) float32 in 0..1, each with its neighbours as channels."""

    def whole_slices(self, size: int) -> Tensor:
        """Whole slices (n, 1, size, size) float32 in 0..1, from 8 bits."""


def example_size(config: Any) -> int:
    """Side in pixels of example images: small, unless the backbone takes only images of its own size."""
    backbone = getattr(config, "backbone", "")
    name = backbone if isinstance(backbone, str) else backbone.name
    size = int(config.size)
    return size if name and is_fixed_size(name) else min(size, _SIZE)
