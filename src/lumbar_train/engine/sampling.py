"""Which samples make up which batch, on which process.

What a sample looks like depends on (seed, epoch, index) alone: not on the number of processes or of loader workers, nor
on an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.loader_processes import Loader, loader_of

Batch = dict[str, Tensor]


class Dataset(Protocol):
    """What the loop asks of a stage's data. An optional ``describe(index) -> str`` names a sample in messages."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """One sample; every random choice comes from ``rng``."""

    def collate(self, samples: list[Batch]) -> Batch:
        """Samples to a batch."""


def epoch_order(n: int, seed: int, epoch: int, *, is_shuffled: bool = True) -> np.ndarray:
    """Order of the samples in an epoch: (n,) int64, a permutation of 0 to n - 1."""
    if not is_shuffled:
        return np.arange(n)
    return np.random.default_rng([seed, epoch]).permutation(n)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that a sample's augmentation draws from."""
    return np.random.default_rng([seed, epoch, index])


@dataclass(frozen=True)
class Part:
    """One forward pass of one process.

    A batch too small for all processes leaves some without samples; those run the batch's first sample with no weight,
    because every process has to take part when gradients are exchanged.

    Attributes:
        epoch: 0-based.
        step: of the epoch, 0-based.
        indices: of the samples.
        counts: False for a sample that is only run to take part.
        is_last: whether it ends the step: gradients are exchanged and the optimiser moves.
    """

    epoch: int
    step: int
    indices: tuple[int, ...]
    counts: bool
    is_last: bool


def step_parts(batch: np.ndarray, epoch: int, step: int, distributed: Distributed, accumulate: int) -> list[Part]:
    """Cut a global batch into the forward passes of this process; every process gets the same number of them."""
    shares = np.array_split(batch, distributed.world)
    n_parts = max(1, min(accumulate, max(len(share) for share in shares)))
    pieces = np.array_split(shares[distributed.rank], n_parts)
    return [
        Part(epoch, step, tuple(map(int, piece if len(piece) else batch[:1])), bool(len(piece)), k == n_parts - 1)
        for k, piece in enumerate(pieces)
    ]


@dataclass
class Plan:
    """Batch sampler of one process: the parts of an epoch's steps, from ``first_step`` on."""

    n_samples: int
    batch_size: int
    accumulate: int
    seed: int
    distributed: Distributed
    is_shuffled: bool = True
    epoch: int = 0
    first_step: int = 0
    parts: list[Part] = field(default_factory=list, init=False)

    @property
    def n_steps(self) -> int:
        """Optimiser steps in an epoch; the last may hold fewer samples."""
        return -(-self.n_samples // self.batch_size)

    def start(self, epoch: int, first_step: int = 0) -> list[Part]:
        """Lay out an epoch from a step on."""
        order = epoch_order(self.n_samples, self.seed, epoch, is_shuffled=self.is_shuffled)
        self.epoch, self.first_step = epoch, first_step
        self.parts = [
            part
            for step in range(first_step, self.n_steps)
            for part in step_parts(
                order[step * self.batch_size : (step + 1) * self.batch_size],
                epoch,
                step,
                self.distributed,
                self.accumulate,
            )
        ]
        return self.parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for part in self.parts:
            yield [(part.epoch, index) for index in part.indices]


class _Seeded(TorchDataset[Batch]):
    """Draws a sample by (epoch, index), so that any worker makes the same one."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        return self.dataset.sample(index, sample_rng(self.seed, epoch, index))


def make_loader(dataset: Dataset, plan: Plan, *, workers: int, device: torch.device) -> Loader:
    """A loader over ``plan``; iterate it anew after each ``plan.start``."""
    seeded = _Seeded(dataset, plan.seed)
    return loader_of(seeded, plan, dataset.collate, workers=workers, device=device, are_kept=True)


def to_device(batch: Batch, device: torch.device, *, channels_last: bool = False) -> Batch:
    """Move a batch; images (4 axes) take the memory format of the network."""
    moved = {}
    for name, value in batch.items():
        value = value.to(device, non_blocking=True)
        if channels_last and value.dim() == 4 and value.is_floating_point():
            value = value.contiguous(memory_format=torch.channels_last)
        moved[name] = value
    return moved


@torch.no_grad()
def predict(
    forward: Callable[[Batch], dict[str, Tensor]],
    dataset: Dataset,
    *,
    batch_size: int,
    distributed: Distributed | None = None,
    seed: int = 0,
    workers: int = 0,
) -> dict[str, np.ndarray]:
    """Outputs of every sample, in the order of the dataset, the same on every process.

    Args:
        forward: batch on the device -> tensors with one row a sample. Set the network to ``eval()`` first.
        dataset: samples are drawn with epoch 0's generators; it should not augment.
        batch_size: samples a forward pass on each process.
        distributed: the processes that share the work.
        seed: of the samples' generators.
        workers: loader processes.

    Returns:
        Arrays with ``len(dataset)`` rows; rows of the processes are put back to their places, none twice or missing.
    """
    distributed = distributed or Distributed()
    mine = np.arange(len(dataset))[distributed.rank :: distributed.world]
    chunks = [[(0, int(i)) for i in mine[k : k + batch_size]] for k in range(0, len(mine), batch_size)]
    loader = loader_of(
        _Seeded(dataset, seed), chunks, dataset.collate, workers=workers, device=distributed.device, are_kept=False
    )
    outputs: dict[str, list[np.ndarray]] = {}
    for batch in loader:
        for name, value in forward(to_device(batch, distributed.device)).items():
            is_half = value.dtype in (torch.float16, torch.bfloat16)  # numpy has no bfloat16
            outputs.setdefault(name, []).append((value.float() if is_half else value).cpu().numpy())
    parts = distributed.gather((mine, {name: np.concatenate(values) for name, values in outputs.items()}))
    return _put_back(parts, len(dataset))


def _put_back(parts: list[tuple[np.ndarray, dict[str, np.ndarray]]], n: int) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for places, arrays in parts:
        for name, values in arrays.items():
            if name not in result:
                result[name] = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
            result[name][places] = values
    return result
