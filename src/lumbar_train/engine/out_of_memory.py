"""What a fit does when its device has no room for a part of a batch: it cuts the batch into twice as many parts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lumbar_train.engine.distributed import Distributed


class PartTooLarge(Exception):
    """A part did not fit the memory of a device; raised by every process of a fit for the same part."""


@contextmanager
def part_that_fits(distributed: Distributed) -> Iterator[None]:
    """Run both passes of a part; where one process of the group lacks memory for it, all raise ``PartTooLarge``.

    Every process asks the others once at the end, whether it came there or not. One whose layers wait for the others
    in between has asked before (``end_where_others_failed``): then it has got its answer.
    """
    failed = False
    try:
        yield
    except torch.OutOfMemoryError:
        failed = True
    if _has_any_failed(distributed, failed):
        raise PartTooLarge


def end_where_others_failed(distributed: Distributed) -> None:
    """Raise ``PartTooLarge`` in the middle of a part that another process has given up."""
    if _has_any_failed(distributed, False):
        raise PartTooLarge


def _has_any_failed(distributed: Distributed, failed: bool) -> bool:
    if not distributed.is_many:
        return failed
    return float(distributed.sum(torch.tensor(float(failed), device=distributed.device))) > 0


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
