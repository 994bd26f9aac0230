"""Fine-tuning as fastai does it: first the head alone, then all layers, each with the one-cycle schedule.

Follows ``Learner.fine_tune`` and ``fit_one_cycle`` (docs.fast.ai/callback.schedule). The learning rate of the first
cycle starts 25 times below the base rate and reaches it after 0.99 of the cycle. In the second cycle the head peaks at
half the base rate, the first layers at 1/``lr_mult`` of that, the layers between at the geometric mean; it starts 5
times lower and peaks after 0.3 of the cycle. Both cycles end 100,000 times below the peak. Momentum goes from 0.95 to
0.85 and back while the rate rises and falls. The second cycle starts with a new optimiser state.
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
_CHECKPOINT_S = 30.0  # the state is saved at the end of an epoch if the last save is older than this


@dataclass(frozen=True)
class Phase:
    """One cycle of the schedule.

    Attributes:
        name: in the log.
        epochs: its length.
        rates: peak learning rates of early body, late body and head.
        pct_start: share of the cycle after which the peak is reached.
        div: the first rate is so many times below the peak.
        is_frozen: only the head and the norms are trained.
    """

    name: str
    epochs: int
    rates: tuple[float, float, float]
    pct_start: float
    div: float
    is_frozen: bool


def phases(base_lr: float, epochs: int, freeze_epochs: int, lr_mult: float) -> list[Phase]:
    """The cycles of ``fine_tune``. While the body is frozen, its norms learn ten times slower than the head."""
    cycles = []
    if freeze_epochs:
        cycles.append(Phase("head", freeze_epochs, (base_lr / 10, base_lr / 10, base_lr), 0.99, 25.0, True))
    peak = base_lr / 2
    cycles.append(Phase("all", epochs, (peak / lr_mult, peak / lr_mult**0.5, peak), 0.3, 5.0, False))
    return cycles


def extra_epoch(base_lr: float, lr_mult: float, number: int) -> Phase:
    """One more epoch of all layers at a tenth of the rate, for a fit that goes on until an accuracy is reached."""
    peak = base_lr / 20
    return Phase(f"more {number}", 1, (peak / lr_mult, peak / lr_mult**0.5, peak), 0.3, 5.0, False)


@dataclass(frozen=True)
class Samples:
    """What to train on.

    Attributes:
        images: (M, size, size).
        classes: (M,) 0, 1 or 2.
        rows: (N,) rows of both; upsampling repeats some of them.
    """

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]
    rows: NDArray[np.int64]


class Batches:
    """The batches of each epoch, in a seeded order; an incomplete last batch is left out, as in fastai.

    Args:
        samples: what to train on.
        batch_size: images per batch; fewer if there are fewer.
        device: where the batches go.
    """

    def __init__(self, samples: Samples, batch_size: int, device: torch.device) -> None:
        self.samples, self.batch_size, self.device = samples, min(batch_size, len(samples.rows)), device

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.samples.rows) // self.batch_size

    def batch(self, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B, 1, H, W) and classes (B,): a function of seed, epoch and step alone."""
        order = np.random.default_rng([seed, epoch]).permutation(self.samples.rows)
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 100_003 + step)
        images = as_input(self.samples.images[rows], self.device)
        return augment(images, generator), torch.from_numpy(self.samples.classes[rows]).to(self.device)


class Tuner:
    """Fits one network. At the end of an epoch everything is saved that a resumed run needs.

    Args:
        network: trained in place.
        samples: what to train on.
        batch_size: images per step.
        weight_decay: decoupled; not on norms and biases.
        seed: of order, augmentation and dropout.
        device: to train on.
        checkpoint: file of the state; None to save none.
        amp: half precision, as in ``LoopConfig``.
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
        self.network.to(memory_format=torch.channels_last)  # 1.5 times as fast, also on CPUs
        self.batches = Batches(samples, batch_size, device)
        self.weight_decay, self.seed, self.device, self.checkpoint = weight_decay, seed, device, checkpoint
        self.groups: list[Group] = parameter_groups(network)
        self.dtype = amp_dtype(LoopConfig(amp=amp), device)
        self.log: list[dict[str, Any]] = []
        self.epoch = 0  # over all phases
        self._saved = time.monotonic()

    def run(self, cycles: list[Phase], *, resume: bool = False) -> None:
        """Train through the cycles; with ``resume``, continue from the checkpoint if there is one.

        Raises:
            TrainingError: the loss is not finite.
        """
        state = load_state(self.checkpoint) if resume and self.checkpoint and self.checkpoint.is_file() else None
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.log, self.epoch = state["log"], state["epoch"]
        first_epoch = 0
        for cycle in cycles:
            if first_epoch + cycle.epochs > self.epoch:
                self._cycle(cycle, self.epoch - first_epoch, state if self.epoch > first_epoch else None)
                state = None
            first_epoch += cycle.epochs
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)

    def _cycle(self, cycle: Phase, epochs_done: int, state: dict[str, Any] | None) -> None:
        freeze(self.groups, body=cycle.is_frozen)
        optimizer = make_optimizer(self.groups, list(cycle.rates), self.weight_decay)
        scheduler = one_cycle(optimizer, cycle, len(self.batches))
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            restore_scaler(scaler, state["scaler"])
        for _ in range(epochs_done, cycle.epochs):
            self._epoch(cycle, optimizer, scheduler, scaler)
            self.epoch += 1
            if self.checkpoint and time.monotonic() - self._saved > _CHECKPOINT_S:
                self._save(optimizer, scheduler, scaler)

    def _epoch(self, cycle: Phase, optimizer: Any, scheduler: OneCycleLR, scaler: Any) -> None:
        self.network.train()
        torch.manual_seed(self.seed * 10_007 + self.epoch)
        started, rate, total = time.monotonic(), 0.0, torch.zeros((), device=self.device)
        for step in range(len(self.batches)):
            loss = self.loss(self.epoch, step)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            rate = max(rate, optimizer.param_groups[-1]["lr"])
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            total += loss.detach()
        mean = float(total) / len(self.batches)
        if not np.isfinite(mean):
            column = self.network.config.column
            raise TrainingError(f"{column}: epoch {self.epoch + 1}: the loss is {mean}, expected a number; lower --lr")
        seconds = time.monotonic() - started
        n_images = len(self.batches) * self.batches.batch_size
        self.log.append(
            {"epoch": self.epoch, "phase": cycle.name, "loss": mean, "peak_lr": rate, "seconds": seconds,
             "images_per_s": n_images / max(seconds, 1e-9)}
        )  # fmt: skip

    def loss(self, epoch: int, step: int) -> Tensor:
        """Cross entropy of one batch, without class weights, because upsampling has balanced the classes."""
        images, classes = self.batches.batch(self.seed, epoch, step)
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
    """Learning rate and momentum of one cycle; at step k they are fastai's at the share k / steps of the cycle.

    torch reaches the end of the schedule at the last step, and its peak one step before the given share. With one more
    step than is taken, and a share that makes up for it, peak and end are where fastai has them.

    Args:
        optimizer: with the peak rate of each group.
        cycle: length and shape.
        n_steps: per epoch.
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
    measure: Callable[[], float],
    target: float,
    extra: Callable[[int], Phase],
    max_added: int,
) -> tuple[float, int]:
    """Run the cycles, then single epochs until an accuracy is reached.

    Args:
        tuner: of the fit.
        cycles: the usual ones.
        measure: gives the accuracy now.
        target: accuracy at which to stop.
        extra: the k-th additional epoch, from 1.
        max_added: additional epochs at most.

    Returns:
        the accuracy reached and the number of epochs added.
    """
    tuner.run(cycles)
    accuracy, added = measure(), 0
    while accuracy < target and added < max_added:
        added += 1
        tuner.run([Phase("done", tuner.epoch, (0.0, 0.0, 0.0), 0.3, 5.0, False), extra(added)])
        accuracy = measure()
    return accuracy, added
