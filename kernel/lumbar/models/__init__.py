"""Networks only. ``build`` alone knows which name means which class and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lumbar import config as configs
from lumbar.errors import ManifestError
from lumbar.models.aggregator import Aggregator
from lumbar.models.baseline import BaselineNet
from lumbar.models.classifier import AxialClassifier, SagittalClassifier
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.level_sequence import LevelSequenceAggregator
from lumbar.models.regression import AxialRegressionNet, SagittalRegressionNet
from lumbar.models.sequence import SliceRoleNet

MODELS: dict[str, tuple[type[nn.Module], type]] = {
    "heatmap": (HeatmapNet, configs.HeatmapConfig),
    "sagittal_regression": (SagittalRegressionNet, configs.SagittalRegressionConfig),
    "axial_regression": (AxialRegressionNet, configs.AxialRegressionConfig),
    "slice_role": (SliceRoleNet, configs.SliceRoleConfig),
    "sagittal_classifier": (SagittalClassifier, configs.SagittalClassifierConfig),
    "axial_classifier": (AxialClassifier, configs.AxialClassifierConfig),
    "aggregator": (Aggregator, configs.AggregatorConfig),
    "level_sequence": (LevelSequenceAggregator, configs.LevelSequenceConfig),
    "baseline": (BaselineNet, configs.BaselineConfig),
}


def build(model: str, config: Mapping[str, Any]) -> nn.Module:
    """A network from its registered name and its configuration as plain JSON types.

    Raises:
        ManifestError: the name or a key of the configuration is unknown.
    """
    if model not in MODELS:
        raise ManifestError(f"model {model!r}: unknown, expected one of {sorted(MODELS)}")
    network, kind = MODELS[model]
    return network(configs.from_dict(kind, config))


def name_of(config: Any) -> str:
    """The registered name whose configuration class ``config`` is an instance of."""
    return next(name for name, (_, kind) in MODELS.items() if type(config) is kind)
