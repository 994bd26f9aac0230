"""Fine-tuning as fastai does it: the head alone for an epoch, then all layers, both under one-cycle.

Follows ``Learner.fine_tune`` and ``fit_one_cycle`` (docs.fast.ai/callback.schedule): the frozen cycle peaks at the
base rate late (0.99 of it) and starts 25 times lower; the second cycle peaks at half the base rate for the head, and
geometrically less down to 1/``lr_mult`` of that for the first layers, at 0.3 of it, starting 5 times lower. Both end
100,000 times below the peak; momentum goes 0.95 → 0.85 → 0.95 against the rate. Optimiser state starts anew with the
second cycle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from lumbar.models.baseline import BaselineNet
from lumbar.stages.eight_bit import as_input
from lumbar_train.baseline.augment import augment
from lumbar_train.baseline.network import Group, freeze, make_optimizer, parameter_groups
from lumbar_train.engine.checkpoint import load_state, save_state
from lumbar_train.engine.loop_config import LoopConfig, amp_dtype, restore_scaler
from lumbar_train.errors import TrainingError

DIV_FINAL = 1e5
_CHECKPOINT_S = 30.0  # an epoch's end saves the state if the last save is older


@dataclass(frozen=True)
class Phase:
    """One cycle. ``rates`` are the peaks of early body, late body and head."""

    name: str
    epochs: int
    rates: tuple[float, float, float]
    pct_start: float
    div: float
    is_frozen: bool


def phases(base_lr: float, epochs: int, freeze_epochs: int, lr_mult: float) -> list[Phase]:
    """The cycles of ``fine_tune``; frozen norms learn ten times slower than the head."""
    found = []
    if freeze_epochs:
        found.append(Phase("head", freeze_epochs, (base_lr / 10, base_lr / 10, base_lr), 0.99, 25.0, True))
    peak = base_lr / 2
    found.append(Phase("all", epochs, (peak / lr_mult, peak / lr_mult**0.5, peak), 0.3, 5.0, False))
    return found


def more(base_lr: float, lr_mult: float, number: int) -> Phase:
    """One more epoch of all layers, for those who train until an accuracy is reached: a tenth of the rate."""
    peak = base_lr / 20
    return Phase(f"more {number}", 1, (peak / lr_mult, peak / lr_mult**0.5, peak), 0.3, 5.0, False)


@dataclass(frozen=True)
class Samples:
    """What to train on: uint8 images (M, size, size), classes (M,), and rows of both, repeated by upsampling."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]
    rows: NDArray[np.int64]


class Steps:
    """Batches of an epoch: a seeded order; the last batch is left out where it is short, as fastai does."""

    def __init__(self, samples: Samples, batch_size: int, device: torch.device) -> None:
        self.samples, self.batch_size, self.device = samples, min(batch_size, len(samples.rows)), device

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.samples.rows) // self.batch_size

    def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B, 1, H, W) and classes (B,): a function of seed, epoch and step alone."""
        order = np.random.default_rng([seed, epoch]).permutation(self.samples.rows)
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 100_003 + step)
        images = as_input(self.samples.images[rows], self.device)
        return augment(images, generator), torch.from_numpy(self.samples.classes[rows]).to(self.device)


class Tuner:
    """One fit. All that must survive a kill is saved at the ends of epochs.

    Args:
        network: trained in place.
        samples: what on.
        batch_size: images a step.
        weight_decay: decoupled.
        seed: of order, augmentation and dropout.
        device: where.
        checkpoint: file of the state; None keeps none.
        amp: half precision, as ``LoopConfig`` has it.
    """

    def __init__(
        self,
        network: BaselineNet,
        samples: Samples,
        *,
        batch_size: int,
        weight_decay: float,
        seed: int,
        device: torch.device,
        checkpoint: Path | None = None,
        amp: str = "auto",
    ) -> None:
        self.network = network.to(device)
        self.network.to(memory_format=torch.channels_last)  # half as fast again, on CPUs too
        self.steps = Steps(samples, batch_size, device)
        self.weight_decay, self.seed, self.device, self.checkpoint = weight_decay, seed, device, checkpoint
        self.groups: list[Group] = parameter_groups(network)
        self.dtype = amp_dtype(LoopConfig(amp=amp), device)
        self.log: list[dict[str, Any]] = []
        self.epoch = 0  # over all phases
        self._saved = time.monotonic()

    def run(self, cycles: list[Phase], *, resume: bool = False) -> None:
        """Train through the cycles; ``resume`` goes on from the checkpoint where there is one.

        Raises:
            TrainingError: a loss that is not finite.
        """
        state = load_state(self.checkpoint) if resume and self.checkpoint and self.checkpoint.is_file() else None
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.log, self.epoch = state["log"], state["epoch"]
        before = 0
        for cycle in cycles:
            if before + cycle.epochs > self.epoch:
                self._cycle(cycle, self.epoch - before, state if self.epoch > before else None)
                state = None
            before += cycle.epochs
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)

    def _cycle(self, cycle: Phase, done: int, state: dict[str, Any] | None) -> None:
        freeze(self.groups, body=cycle.is_frozen)
        optimizer = make_optimizer(self.groups, list(cycle.rates), self.weight_decay)
        scheduler = one_cycle(optimizer, cycle, len(self.steps))
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            restore_scaler(scaler, state["scaler"])
        for _ in range(done, cycle.epochs):
            self._epoch(cycle, optimizer, scheduler, scaler)
            self.epoch += 1
            if self.checkpoint and time.monotonic() - self._saved > _CHECKPOINT_S:
                self._save(optimizer, scheduler, scaler)

    def _epoch(self, cycle: Phase, optimizer: Any, scheduler: OneCycleLR, scaler: Any) -> None:
        self.network.train()
        torch.manual_seed(self.seed * 10_007 + self.epoch)
        started, rate, total = time.monotonic(), 0.0, torch.zeros((), device=self.device)
        for step in range(len(self.steps)):
            loss = self.loss(self.epoch, step)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            rate = max(rate, optimizer.param_groups[-1]["lr"])
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            total += loss.detach()
        mean = float(total) / len(self.steps)
        if not np.isfinite(mean):
            column = self.network.config.column
            raise TrainingError(f"{column}: epoch {self.epoch + 1}: the loss is {mean}, expected a number; lower --lr")
        seconds = time.monotonic() - started
        n_images = len(self.steps) * self.steps.batch_size
        self.log.append(
            {"epoch": self.epoch, "phase": cycle.name, "loss": mean, "peak_lr": rate, "seconds": seconds,
             "images_per_s": n_images / max(seconds, 1e-9)}
        )  # fmt: skip

    def loss(self, epoch: int, step: int) -> Tensor:
        """Cross entropy of a step's batch; classes are balanced, so none is weighted."""
        images, classes = self.steps.batch(self.seed, epoch, step)
        context = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with context:
            logits = self.network(images)
        return F.cross_entropy(logits.float(), classes)

    def _save(self, optimizer: Any, scheduler: OneCycleLR, scaler: Any) -> None:
        assert self.checkpoint is not None
        state = {
            "network": {name: value.cpu() for name, value in self.network.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "scheduler": {k: v for k, v in scheduler.state_dict().items() if not callable(v)},
            "scaler": scaler.state_dict(),
            "log": self.log,
            "epoch": self.epoch,
        }
        save_state(self.checkpoint, state)
        self._saved = time.monotonic()


def one_cycle(optimizer: torch.optim.Optimizer, cycle: Phase, n_steps: int) -> OneCycleLR:
    """Rate and momentum of one cycle over ``n_steps`` batches an epoch: of step k, fastai's at k / steps.

    torch counts the last of its steps as the end, and the peak as one before its share: one step more than is taken,
    and a share that undoes the other, put peak and end where fastai has them.
    """
    total = cycle.epochs * n_steps
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total + 1,
        pct_start=(cycle.pct_start * total + 1) / (total + 1),
        div_factor=cycle.div,
        final_div_factor=DIV_FINAL / cycle.div,
        base_momentum=0.85,
        max_momentum=0.95,
    )


def train_until(
    tuner: Tuner,
    cycles: list[Phase],
    accuracy: Callable[[], float],
    wanted: float,
    extra: Callable[[int], Phase],
    cap: int,
) -> tuple[float, int]:
    """Run the cycles, then one epoch after another until ``accuracy`` reaches ``wanted`` or ``cap`` epochs were added.

    Returns:
        the accuracy reached and the number of epochs added.
    """
    tuner.run(cycles)
    found, added = accuracy(), 0
    while found < wanted and added < cap:
        added += 1
        tuner.run([Phase("done", tuner.epoch, (0.0, 0.0, 0.0), 0.3, 5.0, False), extra(added)])
        found = accuracy()
    return found, added
