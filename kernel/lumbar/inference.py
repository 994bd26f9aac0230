"""One way to run a network: on its own device, half precision on GPUs, float32 on CPU, no gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie."""
    return next(network.parameters()).device


def forward(network: nn.Module, *inputs: Tensor) -> Tensor:
    """A network's output as float32 on the CPU; inputs are moved to its device."""
    device = device_of(network)
    is_cuda = device.type == "cuda"
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.float16, enabled=is_cuda):
        out: Tensor = network(*(tensor.to(device, non_blocking=True) for tensor in inputs))
    return out.float().cpu()
