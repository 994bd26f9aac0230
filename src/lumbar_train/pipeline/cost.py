"""What a training step of a network costs in memory and floating-point operations, counted without any data.

The network runs forwards and backwards on meta tensors, which have a shape and no content. Every tensor that torch
makes on the way is seen (``_LiveBytes``), so the largest sum of those that live at the same time is what an allocator
would have to hold; the operations are counted by torch's own ``FlopCounterMode``.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lumbar.config import (
    AggregatorConfig,
    AxialRegressionConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SagittalRegressionConfig,
    SeriesContrastConfig,
    SliceRoleConfig,
    to_dict,
)
from lumbar.errors import ManifestError
from lumbar.models import build, name_of
from lumbar.models.sequence import MaskedBiLSTM
from lumbar.stages.heat import STRIDE
from lumbar_train.engine.activation_checkpoints import checkpoint_activations
from lumbar_train.engine.optimisation import LossFunction
from lumbar_train.stages.losses import competition_loss

_ADAM = 2  # numbers that AdamW keeps for each parameter


@dataclass(frozen=True)
class NetworkCost:
    """Memory and operations of a network's training step; the memory is a straight line over the number of images.

    Attributes:
        parameters: numbers that are trained.
        fixed_bytes: of activations, whatever the number of images.
        image_bytes: of activations, for each image.
        forward_flops: of one image.
        training_flops: of one image, forwards and backwards.
    """

    parameters: int
    fixed_bytes: float
    image_bytes: float
    forward_flops: float
    training_flops: float

    def activation_bytes(self, images: int) -> float:
        """The most that inputs, activations and gradients of activations take at the same time."""
        return self.fixed_bytes + self.image_bytes * images

    def state_bytes(self, *, is_averaged: bool, is_half: bool) -> int:
        """Weights, their gradients and the optimiser's state, in float32; half precision adds a copy of the weights."""
        copies = 2 + _ADAM + is_averaged
        return self.parameters * (4 * copies + 2 * is_half)


def network_cost(
    config: Any, loss: LossFunction, *, slices: int, is_half: bool = False, is_checkpointed: bool = False
) -> NetworkCost:
    """Count a network's training step with two sizes of batch.

    Args:
        config: of the network.
        loss: what is minimised, from a network and a batch.
        slices: images of a sample, for networks over sequences.
        is_half: activations in half precision, as under autocast on a GPU; the aggregator is fitted in float32.
        is_checkpointed: activations inside the backbone are computed anew in the backward pass.

    Raises:
        ManifestError: the network cannot be built.
    """
    # Few studies take less than the aggregator's own gradients: its line begins where activations are the most
    is_aggregator = isinstance(config, AggregatorConfig)
    sizes = (256, 768) if is_aggregator else (2, 6)
    is_half = is_half and not is_aggregator  # fitted outside the loop, whatever the precision of the fits
    few, many = (
        _counted_step(config, loss, samples, slices, is_half=is_half, is_checkpointed=is_checkpointed)
        for samples in sizes
    )
    images = (sizes[1] - sizes[0]) * slices
    slope = (many.peak - few.peak) / images
    return NetworkCost(
        parameters=few.parameters,
        fixed_bytes=max(few.peak - slope * sizes[0] * slices, 0.0),
        image_bytes=slope,
        forward_flops=(many.forward - few.forward) / images,
        training_flops=(many.training - few.training) / images,
    )


def training_flops(config: Any, loss: LossFunction, *, slices: int) -> float:
    """Operations of one image's training step, as ``network_cost`` counts them, in a fraction of its time.

    Args:
        config: of the network.
        loss: what is minimised, from a network and a batch.
        slices: images of a sample, for networks over sequences.

    Raises:
        ManifestError: the network cannot be built.
    """
    return _counted_flops(config, loss, slices, is_training=True)


def forward_flops(config: Any, loss: LossFunction, *, slices: int) -> float:
    """Operations of one image's forward pass; arguments as in ``training_flops``.

    Raises:
        ManifestError: the network cannot be built.
    """
    return _counted_flops(config, loss, slices, is_training=False)


def _counted_flops(config: Any, loss: LossFunction, slices: int, *, is_training: bool) -> float:
    samples = 2
    network, batch = meta_network(config), meta_batch(config, samples, slices)
    flops = FlopCounterMode(display=False, custom_mapping=_COUNTED)
    with _AllPresent(), torch.set_grad_enabled(is_training), flops:
        value = loss(network, batch)[0]
        if is_training:
            torch.autograd.backward(value)
    return flops.get_total_flops() / (samples * slices)


@dataclass(frozen=True)
class _Step:
    parameters: int
    peak: float
    forward: float
    training: float


def _counted_step(
    config: Any, loss: LossFunction, samples: int, slices: int, *, is_half: bool, is_checkpointed: bool
) -> _Step:
    network = meta_network(config)
    if is_checkpointed:
        checkpoint_activations(network)
    if is_half:
        network.to(torch.bfloat16)
    batch = meta_batch(config, samples, slices, torch.bfloat16 if is_half else torch.float32)
    live = _LiveBytes([*network.parameters(), *network.buffers(), *batch.values()])
    flops = FlopCounterMode(display=False, custom_mapping=_COUNTED)
    # One after the other: while operations are counted, the counter keeps what checkpointing computes anew
    with _AllPresent(), live:
        torch.autograd.backward(loss(network, batch)[0])
    with _AllPresent(), flops:
        value, _ = loss(network, batch)
        forward = flops.get_total_flops()
        torch.autograd.backward(value)
    inputs = sum(tensor.nbytes for tensor in batch.values())
    parameters = sum(p.numel() for p in network.parameters())
    return _Step(parameters, live.peak + inputs, forward, flops.get_total_flops())


def meta_network(config: Any) -> nn.Module:
    """A network without memory for its weights, ready to train; its sequences take every step as valid."""
    try:
        with torch.device("meta"):
            network = build(name_of(config), to_dict(config))
    except ManifestError:  # some timm networks compute with their values while they are built
        network = build(name_of(config), to_dict(config)).to("meta")
    for module in network.modules():
        if isinstance(module, MaskedBiLSTM):  # packing sorts by length, which a tensor without content has not
            module.forward = _unpacked(module)  # type: ignore[method-assign, assignment]
    return network.train()


def _unpacked(module: MaskedBiLSTM) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(steps: Tensor, mask: Tensor) -> Tensor:
        # A network in half precision may be given steps in float32 (positions are), which autocast would convert
        outputs: Tensor = module.rnn(steps.to(next(module.rnn.parameters()).dtype))[0]
        return outputs

    return forward


# The batches that the stages' data sets give, by kind of network


def meta_batch(config: Any, samples: int, slices: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A batch as a stage's data set gives it, without content.

    Args:
        config: of the network.
        samples: of the batch.
        slices: of each sample, for networks over sequences.
        dtype: of images.
    """
    if isinstance(config, HeatmapConfig):
        half = config.size // STRIDE
        shapes = {
            "images": (config.context, config.size, config.size),
            "heat": (config.points, half, half),
            "known": (config.points,),
            "segments": (half, half),
        }
    elif isinstance(config, SagittalRegressionConfig):
        images = (config.context, config.size, config.size)
        shapes = {"images": images, "points": (5, 2), "known": (5,), "marked": (5,), "presence": ()}
    elif isinstance(config, AxialRegressionConfig):
        shapes = {"images": (1, config.size, config.size), "points": (2, 2), "known": (2,)}
    elif isinstance(config, SliceRoleConfig):
        images = (slices, config.size, config.size)
        shapes = {"images": images, "counts": (slices, 3), "mask": (slices,), "known": (3,)}
    elif isinstance(config, SeriesContrastConfig):
        shapes = {"images": (1, config.size, config.size), "contrast": (3,)}
    elif isinstance(config, AggregatorConfig):
        models = len(config.models)
        shapes = {"logits": (models, 5, 5, 3), "mask": (models, 5, 5), "confidence": (5, 4), "labels": (5, 5)}
    else:
        shapes = _crop_shapes(config, slices)
    kinds = {"segments": torch.int64, "level": torch.int64, "labels": torch.int64, "mask": torch.bool}
    kinds |= {name: dtype for name in ("images", "crops")}
    return {
        name: torch.empty(samples, *shape, dtype=kinds.get(name, torch.float32), device="meta")
        for name, shape in shapes.items()
    }


def _crop_shapes(config: Any, slices: int) -> dict[str, tuple[int, ...]]:
    """Crops of a level: windows of fixed length, or all slices of T2 and T1 (``max_slices``) or of an axial series."""
    is_sagittal, all_slices = isinstance(config, SagittalClassifierConfig), getattr(config, "max_slices", 0)
    sequences = (2 if all_slices else 3,) if is_sagittal else ()
    places = (*sequences, max(1, slices // (sequences[0] if sequences else 1)))
    shapes = {"crops": (*places, config.size, config.size), "mask": places, "level": (), "labels": (5,)}
    return shapes | ({"position_mm": places} if all_slices else {})


def aggregator_loss(network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """The aggregator's loss on batches of ``meta_batch``; beside its small network the metric counts."""
    prior = torch.zeros(5, 5, 3, device="meta")
    answer = network(batch["logits"], batch["mask"], prior, batch["confidence"])
    return competition_loss(answer, batch["labels"]), {}


# How tensors without content are counted


def _convolution_backward_flops(
    gradient: list[int], _images: list[int], weight: list[int], *args: Any, out_shape: Any = None, **_more: Any
) -> int:
    """Operations of a convolution's backward pass; torch 2's own formula leaves out that groups are separate.

    Each of the two gradients (of the images, of the weights) costs as much as the forward pass.
    """
    forward = 2 * math.prod(gradient) * math.prod(weight[1:])
    mask = next((value for value in reversed(args) if isinstance(value, list) and len(value) == 3), [True, True, True])
    return forward * (bool(mask[0]) + bool(mask[1]))


_COUNTED = {torch.ops.aten.convolution_backward: _convolution_backward_flops}


class _AllPresent(TorchFunctionMode):
    """Answers what depends on the content of meta tensors as if every place were filled."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nonzero and args[0].is_meta:
            return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta")
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of all tensors that are made and not yet released; ``peak`` is the most at any time."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        """``given``: tensors from before, which do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:  # a view, or a result in place
            return
        n_bytes = storage.nbytes()
        self.known.add(storage)
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, n_bytes)

    def _release(self, n_bytes: int) -> None:
        self.live -= n_bytes
