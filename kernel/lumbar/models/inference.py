"""How every network is run: on its own device, in half precision on a GPU and float32 on a CPU, without gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lumbar.config import CLASSIFIERS
from lumbar.models.turns import in_memory


@dataclass
class Networks:
    """The networks of a bundle by stage, each a list over folds (a single full fit in a demo bundle).

    Attributes:
        by_stage: the networks.
        classifiers: the stages whose logits the aggregator joins, in its order.
        spared: those of them that do not run when time is shortest.
        numbering: the bundle's numbers for how sure the numbering is (``lumbar.stages.numbering``), or none.
        own: classifiers that have localisers of their own, with these (``lumbar.stages.own_places``).
        point_probability: offset and slope of each kind of point (``lumbar.stages.point_probability``), or none.
    """

    by_stage: dict[str, list[nn.Module]] = field(default_factory=dict)
    classifiers: tuple[str, ...] = CLASSIFIERS
    spared: frozenset[str] = frozenset()
    numbering: tuple[float, ...] = ()
    own: tuple[tuple[tuple[str, ...], Networks], ...] = ()
    point_probability: dict[str, list[float]] = field(default_factory=dict)

    def stage(self, name: str) -> list[nn.Module]:
        """Networks of a stage, empty if the bundle has none."""
        return self.by_stage.get(name, [])


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's weights."""
    return next(network.parameters()).device


def forward(network: nn.Module, *inputs: Tensor) -> Tensor:
    """A network's output as float32 on the CPU; inputs are moved to its device."""
    with in_memory(network):
        device = device_of(network)
        is_cuda = device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.float16, enabled=is_cuda):
            out: Tensor = network(*(tensor.to(device, non_blocking=True) for tensor in inputs))
        return out.float().cpu()
