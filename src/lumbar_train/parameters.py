"""Counts the parameters of each network of a recipe, beside those of the reference solution that ``model2`` follows.

The reference networks are rebuilt here from its configurations, layer by layer as far as weights go: timm backbone,
embeddings, LSTMs, linear heads. Nothing is computed with them, so they are built without memory for their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from lumbar.config import to_dict
from lumbar.models import build, name_of
from lumbar_train.recipes import Recipe

_EMBEDDING = 32


def _backbone(name: str, in_channels: int = 1) -> tuple[nn.Module, int]:
    network: Any = timm.create_model(name, in_chans=in_channels, num_classes=0)
    return network, int(network.num_features)


def _axial_xy() -> list[nn.Module]:
    """05b5_loc: left and right (x, y)."""
    body, width = _backbone("efficientnetv2_rw_t")
    return [body, nn.Linear(width, 4)]


def _sagittal_xy() -> list[nn.Module]:
    """14p2_locsag: five neighbouring slices as channels, five levels (x, y) and presence."""
    body, width = _backbone("efficientnetv2_rw_s", 5)
    return [body, nn.Linear(width, 11)]


def _sagittal_z() -> list[nn.Module]:
    """14s10a_locsag: a BiLSTM over slices."""
    body, width = _backbone("efficientnetv2_rw_t")
    return [body, nn.LSTM(width, 512, bidirectional=True), nn.Linear(1024, 3)]


def _sagittal_classifier() -> list[nn.Module]:
    """12y8: level and position embedding, three BiLSTMs, three heads."""
    body, width = _backbone("efficientnetv2_rw_t")
    rnns = [nn.LSTM(width + 2 * _EMBEDDING, 512, bidirectional=True) for _ in range(3)]
    return [body, nn.Embedding(5, _EMBEDDING), nn.Embedding(7, _EMBEDDING), *rnns, *(nn.Linear(1024, 3),) * 3]


def _axial_classifier() -> list[nn.Module]:
    """29a2 and 29g: level embedding, five BiLSTMs (29a2 uses two of them), five heads."""
    body, width = _backbone("efficientnetv2_rw_t")
    rnns = [nn.LSTM(width + _EMBEDDING, 768, bidirectional=True) for _ in range(5)]
    return [body, nn.Embedding(5, _EMBEDDING), *rnns, *(nn.Linear(1536, 3) for _ in range(5))]


REFERENCE: dict[str, Callable[[], list[nn.Module]]] = {
    "sagittal_xy": _sagittal_xy,
    "sagittal_z": _sagittal_z,
    "axial_xy": _axial_xy,
    "sagittal_classifier": _sagittal_classifier,
    "axial_subarticular": _axial_classifier,
    "axial_all": _axial_classifier,
}


def reference_count(stage: str) -> int | None:
    """Parameters of the reference solution's network of a stage; None where they are not counted.

    That is the aggregator, of which 4,096 hidden units are known and not the number of inputs, and what the solution
    does not have.
    """
    if stage not in REFERENCE:
        return None
    with torch.device("meta"):
        return sum(p.numel() for module in REFERENCE[stage]() for p in module.parameters())


def own_count(recipe: Recipe, stage: str) -> int:
    """Parameters of a recipe's network of a stage."""
    config = recipe.stages[stage].network
    with torch.device("meta"):
        return sum(p.numel() for p in build(name_of(config), to_dict(config)).parameters())


def table(recipe: Recipe) -> str:
    """The counts in millions, one line a stage."""
    lines = [f"{recipe.name:<20} {'model':<20} {'backbone':<22} {'parameters':>10} {'solution':>10}"]
    for stage, parts in recipe.stages.items():
        backbone = getattr(parts.network, "backbone", "")
        name = backbone if isinstance(backbone, str) else backbone.name
        reference = reference_count(stage)
        counts = f"{_millions(own_count(recipe, stage)):>10} {_millions(reference) if reference else '–':>10}"
        lines.append(f"{stage:<20} {name_of(parts.network):<20} {name or '–':<22} {counts}")
    return "\n".join(lines)


def _millions(count: int) -> str:
    return f"{count / 1e6:.{2 if count >= 1e5 else 3}f} M"
