"""A network from elsewhere as a member of an ensemble: what the kit calls."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lumbar.stages.external import Case

from .net import Net


def load(folder: Path, device: str) -> Net:
    """The network, ready to predict."""
    net = Net()
    net.load_state_dict(load_file(folder / "net.safetensors"))
    return net.to(device).eval()


def predict(net: Net, case: Case) -> tuple[Tensor, Tensor]:
    """Logits (2 conditions, 5 levels, 3 grades) and mask (2, 5), in the order of ``member.json``."""
    if not case.crops:  # no axial series, or none that reaches a level
        return torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    (crops,) = case.crops  # without "per_series" there is one entry
    images, mask = crops.images.to(case.device), crops.mask.to(case.device)
    logits = net(images, mask)
    if case.augment:  # the mirrored patient, whose left is this one's right
        logits = (logits + net(images.flip(-1), mask).flip(1)) / 2
    shown = crops.mask.any(dim=1)
    return logits.transpose(0, 1), shown.expand(2, -1)
