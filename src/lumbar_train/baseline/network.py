"""A column's network for training: its weights at the start, its three groups of parameters, its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from lumbar.config import BaselineConfig
from lumbar.models.baseline import BaselineNet
from lumbar_train.errors import TrainingError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def make_network(config: BaselineConfig, seed: int, *, pretrained: bool = False) -> BaselineNet:
    """Build a network with seeded random weights; ``pretrained`` takes the body's weights from timm.

    Raises:
        TrainingError: timm cannot get the weights.
    """
    torch.manual_seed(seed)
    network = BaselineNet(config)
    if pretrained:
        network.body.load_state_dict(_pretrained_body(config))
    return network


def _pretrained_body(config: BaselineConfig) -> dict[str, Any]:
    name = config.backbone.name
    if config.backbone.channels or config.backbone.stem_width:
        raise TrainingError(f"--pretrained: {name} is narrowed here, and has no weights; expected a timm name")
    try:
        body = timm.create_model(name, pretrained=True, in_chans=1, num_classes=0, global_pool="")
    except Exception as error:  # the hub, the network and timm each raise errors of their own
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"--pretrained: timm cannot get the weights of {name} ({reason}); expected the internet or timm's cache"
        ) from error
    return dict(body.state_dict())


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate.

    Attributes:
        name: early, late or head.
        weights: matrices and kernels.
        biases: of all layers but the normalisation layers.
        norms: weights and biases of normalisation layers, trained even when the group is frozen.
    """

    name: str
    weights: list[nn.Parameter]
    biases: list[nn.Parameter]
    norms: list[nn.Parameter]


def parameter_groups(network: BaselineNet) -> list[Group]:
    """Groups early body, late body and head: a ResNet is cut after its second stage, as in fastai, others half way."""
    body: Any = network.body
    matcher = body.group_matcher(coarse=True)
    layer_of: dict[str, int] = group_with_matcher(body.named_parameters(), matcher, reverse=True)
    n_layers = max(layer_of.values()) + 1
    is_norm = {id(p) for m in network.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    groups = [Group(name, [], [], []) for name in ("early", "late", "head")]
    for name, parameter in network.named_parameters():
        inside = name.removeprefix("body.")
        group = groups[2 if inside == name else int(layer_of[inside] >= (n_layers + 1) // 2)]
        target = group.norms if id(parameter) in is_norm else group.biases if parameter.ndim <= 1 else group.weights
        target.append(parameter)
    return groups


def freeze(groups: list[Group], *, body: bool) -> None:
    """Freeze the body except its norms, as fastai does; with ``body=False``, train everything."""
    for group in groups:
        is_frozen = body and group.name != "head"
        for parameter in (*group.weights, *group.biases):
            parameter.requires_grad_(not is_frozen)
        for parameter in group.norms:
            parameter.requires_grad_(True)


def make_optimizer(groups: list[Group], rates: list[float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with fastai's constants: beta2 0.99, epsilon 1e-5.

    Args:
        groups: early, late, head; frozen parameters are left out.
        rates: peak learning rate of each.
        weight_decay: of weights; norms and biases have none.
    """
    entries: list[dict[str, Any]] = []
    for group, rate in zip(groups, rates, strict=True):
        for parameters, decay in ((group.weights, weight_decay), ([*group.biases, *group.norms], 0.0)):
            trained = [p for p in parameters if p.requires_grad]
            if trained:
                entries.append({"params": trained, "lr": rate, "weight_decay": decay, "name": group.name})
    return torch.optim.AdamW(entries, lr=rates[-1], betas=(0.95, 0.99), eps=1e-5)
