"""The networks. ``build`` makes one from its registered name and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lumbar import config as configs
from lumbar.errors import ManifestError
from lumbar.models.aggregator import Aggregator
from lumbar.models.backbone import sizes_checked_later
from lumbar.models.baseline import BaselineNet
from lumbar.models.classifier import AxialClassifier, SagittalClassifier
from lumbar.models.fusion import FusionHead
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.level_sequence import LevelSequenceAggregator
from lumbar.models.regression import AxialRegressionNet, SagittalRegressionNet
from lumbar.models.sequence import SliceRoleNet
from lumbar.models.series_contrast import SeriesContrastNet
from lumbar.rules import shown

# Of tensors and of torch.nn.init: in place, and without a change of the tensor's form
_FIRST_VALUES = frozenset(
    {"normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "constant_", "ones_", "zeros_",
     "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "trunc_normal_", "orthogonal_"}
)  # fmt: skip

_NETWORKS: dict[str, type[nn.Module]] = {
    "heatmap": HeatmapNet,
    "sagittal_regression": SagittalRegressionNet,
    "axial_regression": AxialRegressionNet,
    "slice_role": SliceRoleNet,
    "sagittal_classifier": SagittalClassifier,
    "axial_classifier": AxialClassifier,
    "aggregator": Aggregator,
    "level_sequence": LevelSequenceAggregator,
    "fusion": FusionHead,
    "baseline": BaselineNet,
    "series_contrast": SeriesContrastNet,
}
MODELS: dict[str, tuple[type[nn.Module], type]] = {
    name: (network, configs.CONFIGS[name]) for name, network in _NETWORKS.items()
}


def build(model: str, config: Mapping[str, Any]) -> nn.Module:
    """A network from its registered name and its configuration as plain JSON types.

    Raises:
        ManifestError: the name or a key of the configuration is unknown, a value is out of range, or the values do not
            make a network together.
    """
    if model not in MODELS:
        raise ManifestError(f"model {shown(model)}: unknown, expected one of {sorted(MODELS)}")
    network, kind = MODELS[model]
    values: Any = configs.from_dict(kind, config)
    try:
        return network(values)
    except ManifestError:
        raise
    except Exception as error:  # torch and timm raise many types of errors for values that do not fit together
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ManifestError(f"model {model!r}: cannot be built ({reason}), expected a config that fits it") from None


def build_empty(model: str, config: Mapping[str, Any]) -> nn.Module | None:
    """As ``build``, but without memory for the weights: no time goes into first values.

    Who puts the weights in calls ``lumbar.models.backbone.check_sizes`` then, which needs them.

    Returns:
        The network on torch's "meta" device; None where it holds more than weights, or cannot be built without memory.

    Raises:
        ManifestError: as ``build``.
    """
    network = _on_meta(model, config)
    if network is None:
        return None
    filled = network.state_dict().keys()
    for prefix, module in network.named_modules():
        tensors = {**module._parameters, **module._buffers, **vars(module)}
        names = (f"{prefix}.{name}".lstrip(".") for name, value in tensors.items() if isinstance(value, torch.Tensor))
        if not filled >= set(names):
            return None
    return network


def expected_shapes(model: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shape of every tensor that the network's file must hold, without allocating the network.

    Returns:
        name → shape; None where this version of timm cannot build the network without memory.

    Raises:
        ManifestError: as ``build``.
    """
    return _shapes(model, json.dumps(config, sort_keys=True))


@lru_cache(maxsize=64)  # folds and seeds of a stage share one configuration
def _shapes(model: str, config: str) -> dict[str, tuple[int, ...]] | None:
    values = json.loads(config)
    if model in MODELS:
        configs.from_dict(MODELS[model][1], values)  # what this refuses is wrong, whatever timm can do
    network = _on_meta(model, values)
    return None if network is None else {name: tuple(t.shape) for name, t in network.state_dict().items()}


def _on_meta(model: str, values: Mapping[str, Any]) -> nn.Module | None:
    """A network without memory; None where timm needs some."""
    try:
        with torch.device("meta"), _NoFirstValues(), sizes_checked_later():
            return build(model, values)
    except ManifestError:
        if model not in MODELS or not _is_built_by_timm(values):
            raise
        return None  # some timm networks cannot be built without memory, since they compute with their values


class _NoFirstValues(TorchFunctionMode):
    """Leaves out first values, which tensors on the "meta" device have not: torch loads its compiler for some."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        tensor = args[0] if args else options.get("tensor")
        if getattr(function, "__name__", "") in _FIRST_VALUES and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return function(*args, **options)


def _is_built_by_timm(values: Mapping[str, Any]) -> bool:
    return bool(values.get("backbone"))


def name_of(config: Any) -> str:
    """The registered name whose configuration class ``config`` is an instance of."""
    return next(name for name, (_, kind) in MODELS.items() if type(config) is kind)
