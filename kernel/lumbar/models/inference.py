"""How every network is run: on its own device, in half precision on a GPU and float32 on a CPU, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lumbar.config import CLASSIFIERS
from lumbar.models.passes import passes_of
from lumbar.models.turns import in_memory


@dataclass
class Networks:
    """The networks of a bundle by stage, each a list over folds (a single full fit in a demo bundle).

    Attributes:
        by_stage: the networks.
        classifiers: the stages whose logits the aggregator joins, in its order.
        spared: those of them that do not run when time is shortest.
        external: external members by name, classifiers whose networks stand in no list (``lumbar.stages.external``).
        numbering: the bundle's numbers for how sure the numbering is (``lumbar.stages.numbering``), or none.
        own: classifiers that have localisers of their own, with these (``lumbar.stages.own_places``).
        point_probability: offset and slope of each kind of point (``lumbar.stages.point_probability``), or none.
        grade_calibration: temperature and share of the prior of each group of conditions
            (``lumbar.stages.grade_calibration``), or none.
    """

    by_stage: dict[str, list[nn.Module]] = field(default_factory=dict)
    classifiers: tuple[str, ...] = CLASSIFIERS
    spared: frozenset[str] = frozenset()
    external: dict[str, Any] = field(default_factory=dict)
    numbering: tuple[float, ...] = ()
    own: tuple[tuple[tuple[str, ...], Networks], ...] = ()
    point_probability: dict[str, list[float]] = field(default_factory=dict)
    grade_calibration: dict[str, list[float]] = field(default_factory=dict)

    def stage(self, name: str) -> list[nn.Module]:
        """Networks of a stage, empty if the bundle has none."""
        return self.by_stage.get(name, [])


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's weights."""
    return next(network.parameters()).device


def forward(network: nn.Module, *inputs: Tensor) -> Tensor:
    """A network's output as float32 on the CPU; inputs are moved to its device.

    Several threads may call it with networks of one GPU: passes are made one after another (``models.passes``).
    """
    (out,) = _run(network, network, inputs)
    return out


def graded(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A classifier's logits and the features that they rest on, in the same way."""
    logits, features = _run(network, network.graded, inputs)
    return logits, features


def _run(network: nn.Module, function: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a network's function, one or several."""
    with in_memory(network):
        device = device_of(network)
        if device.type == "cuda":
            return _run_on_gpu(function, device, inputs)
        with torch.inference_mode():
            out = function(*(tensor.to(device) for tensor in inputs))
        return [tensor.float().cpu() for tensor in _each(out)]


def _run_on_gpu(function: Any, device: torch.device, inputs: Sequence[Tensor]) -> list[Tensor]:
    """``_run`` in half precision. Copies go through pinned memory, so that they are only queued, in one stream."""
    pinned = [tensor.pin_memory() if tensor.device.type == "cpu" and tensor.numel() else tensor for tensor in inputs]
    there = [tensor.to(device, non_blocking=True) for tensor in pinned]
    return passes_of(str(device))(lambda: _pass(function, device, there))


def _pass(function: Any, device: torch.device, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One forward pass on a GPU, until its outputs are in pinned memory."""
    with torch.inference_mode():
        with torch.autocast("cuda", dtype=torch.float16):
            out = function(*inputs)
        results = []
        for tensor in _each(out):
            result = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
            results.append(result.copy_(tensor.float().contiguous(), non_blocking=True))
        # A thread that waits so leaves its core to others
        is_done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        is_done.record(torch.cuda.current_stream(device))
        is_done.synchronize()
    return results


def _each(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else out
