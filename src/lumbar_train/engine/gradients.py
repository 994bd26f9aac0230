"""What the processes of a group do together in a step: start from the same weights, and add up their gradients.

Gradients are exchanged once a step, after every part of it has been computed on every process. torch's
``DistributedDataParallel`` exchanges them while the backward pass still runs: a process that runs out of memory there
would leave the others waiting in the middle of an exchange.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.out_of_memory import end_where_others_failed

_BUCKET = 2**23  # numbers that are exchanged at once


def start_alike(model: nn.Module, distributed: Distributed) -> None:
    """Give every process the main process's weights and running statistics, in place."""
    if not distributed.is_many:
        return
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(distributed.share(value.contiguous()))  # not every library sends channels that lie last


def exchange_gradients(parameters: Sequence[Tensor], distributed: Distributed) -> None:
    """Add up the gradients of all processes, in place; a parameter that no process has used keeps none."""
    if not distributed.is_many:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=distributed.device)
    used = [p for p, count in zip(parameters, distributed.sum(has).tolist(), strict=True) if count]
    for some in _buckets(used):
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in some]
        flat = distributed.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, gradient, piece in zip(some, gradients, pieces, strict=True):
            parameter.grad = gradient.copy_(piece.view_as(gradient))


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of the same type in groups of some millions of numbers."""
    some: list[Tensor] = []
    for parameter in parameters:
        if some and (some[0].dtype != parameter.dtype or sum(p.numel() for p in some) + parameter.numel() > _BUCKET):
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


def guard_shared_statistics(
    model: nn.Module, distributed: Distributed, kind: type[nn.Module] = nn.SyncBatchNorm
) -> None:
    """Before each layer that exchanges batch statistics the processes ask whether one of them has run out of memory.

    Both passes of such a layer wait for all processes; without the question those would wait for one that has given
    the part up.

    Args:
        model: whose layers are looked at.
        distributed: this process and its peers.
        kind: of the layers.
    """

    def before(layer: nn.Module, _inputs: object) -> None:
        if layer.training:
            end_where_others_failed(distributed)

    def after(layer: nn.Module, _inputs: object, out: Tensor) -> None:
        if layer.training and out.requires_grad:
            out.register_hook(lambda _gradient: end_where_others_failed(distributed))  # type: ignore[no-untyped-call]

    if distributed.is_many:
        for layer in model.modules():
            if isinstance(layer, kind):
                layer.register_forward_pre_hook(before)
                layer.register_forward_hook(after)
