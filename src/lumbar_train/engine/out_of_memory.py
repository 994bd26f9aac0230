"""What a fit does when its device has no room for a part of a batch: it cuts the batch into twice as many parts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lumbar_train.engine.distributed import Distributed
from lumbar_train.errors import TrainingError


class PartTooLarge(Exception):
    """A part did not fit the memory of a device; raised by every process of a fit for the same part."""


@contextmanager
def forward_that_fits(distributed: Distributed) -> Iterator[None]:
    """Run a forward pass; where one process of the group lacks memory for it, all raise ``PartTooLarge``.

    The processes agree before the backward pass, in which gradients are exchanged: one that is missing there would be
    waited for.
    """
    failed = False
    try:
        yield
    except torch.OutOfMemoryError:
        failed = True
    if distributed.is_many:
        failed = float(distributed.sum(torch.tensor(float(failed), device=distributed.device))) > 0
    if failed:
        raise PartTooLarge


@contextmanager
def backward_that_fits(distributed: Distributed) -> Iterator[None]:
    """Run a backward pass; without room for it a process alone raises ``PartTooLarge``.

    Raises:
        TrainingError: in a group, whose other processes are already exchanging gradients.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        if not distributed.is_many:
            raise PartTooLarge from None
        raise TrainingError(
            f"{distributed.device}: out of memory in the backward pass of process {distributed.rank}, expected room "
            "for a part of the batch; give a smaller --memory, or --set STAGE.accumulate=N, and --resume"
        ) from None


def release() -> None:
    """Give back what the failed pass left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def smaller_parts(accumulate: int, share: int) -> int | None:
    """Parts of half the size.

    Args:
        accumulate: parts that a process cuts its share of a batch into.
        share: samples of the largest share.

    Returns:
        More parts, or None where a part is one sample already.
    """
    now = min(accumulate, share)
    size = -(-share // now)
    return None if size <= 1 else -(-share // (size // 2))
