"""Everything that moves a network's weights: gradients added up over parts, loss scale, optimiser, schedule, average.

A step's gradient is that of its whole global batch, however it is cut: parts (accumulation) and processes add up sums
of losses, and the total is divided by the total weight once. So two processes, or four parts, follow the same curve as
one process with one part, to float tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.gradients import exchange_gradients, guard_shared_statistics, start_alike
from lumbar_train.engine.loop_config import (
    LoopConfig,
    amp_dtype,
    autocast,
    is_channels_last,
    place,
    restore_scaler,
)
from lumbar_train.engine.out_of_memory import part_that_fits
from lumbar_train.engine.sampling import Batch, Part, to_device

LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Any]]]

_MAX_SKIPPED = 50  # fp16 steps in a row without a finite gradient; the scale halves each time, 2**16 is long gone


class Optimisation:
    """A network on its device, and what changes its weights.

    One optimiser step is: ``backward`` for each part, ``clip_gradients``, ``refusal``, ``step``.

    Attributes:
        model: the network itself.
        network: the network as the loss calls it: compiled, where the configuration asks for that.
        ema: its averaged weights, where the configuration asks for them.
        updates: optimiser steps taken, skipped ones included.
        skipped: steps in a row that the loss scaler has skipped.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, distributed: Distributed, n_updates: int) -> None:
        self.config, self.distributed = config, distributed
        self.model = place(model, config, distributed)
        start_alike(self.model, distributed)
        guard_shared_statistics(self.model, distributed)
        self.network: Any = torch.compile(self.model) if config.compile else self.model
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.optimizer = create_optimizer_v2(
            self.model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay
        )
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=max(n_updates, 2),  # one step has no curve, and timm warns of it
            lr_min=config.lr_min,
            warmup_t=round(config.warmup * n_updates),
            t_in_epochs=False,
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        is_fp16 = amp_dtype(config, distributed.device) == torch.float16
        self.scaler = torch.amp.GradScaler(distributed.device.type, enabled=is_fp16)
        self.updates = self.skipped = 0

    @property
    def kept(self) -> nn.Module:
        """The network whose weights are validated and kept: the averaged one, where there is one."""
        return self.ema.module if self.ema is not None else self.model

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def backward(self, part: Part, batch: Batch, loss_fn: LossFunction) -> dict[str, Tensor]:
        """Add the gradient of a part's loss *sum* to the step's.

        Returns:
            Sums over the part's samples, float64 on the device: ``loss``, ``weight``, the loss's other scalars,
            ``samples``.

        Raises:
            PartTooLarge: the device has no room for it.
        """
        device, distributed = self.distributed.device, self.distributed
        torch.manual_seed(_step_seed(self.config.seed, part.epoch, part.step, distributed.rank, part.indices[0]))
        with part_that_fits(distributed):
            with autocast(self.config, device):
                batch = to_device(batch, device, channels_last=is_channels_last(self.config, device))
                loss, scalars = loss_fn(self.network, batch)
            scalars = dict(scalars)
            weight = _scalar(scalars.pop("weight", len(part.indices)), device) * float(part.counts)
            # The nominal batch size only keeps half-precision gradients in range until the true weight is known.
            torch.autograd.backward(self.scaler.scale(loss.float() * weight * (1 / self.config.batch_size)))
        if part.is_last:
            exchange_gradients(self.parameters, distributed)
        sums = {"loss": loss.detach().double() * weight, "weight": weight}
        sums |= {name: _scalar(scalars[name], device) * weight for name in sorted(scalars)}
        return sums | {"samples": _scalar(len(part.indices) * part.counts, device)}

    def clip_gradients(self, weight: float) -> float:
        """Divide the gradients by the weight of the whole step (1 at least) and clip them; gives their norm."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.config.batch_size / max(weight, 1.0))
        limit = self.config.clip_norm if self.config.clip_norm is not None else math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters, limit))

    def refusal(self, norm: float) -> str:
        """Why no step may follow from gradients of this norm; empty if it may, or if the scaler will skip it.

        Counts the steps in a row that the scaler skips.
        """
        if math.isfinite(norm):
            self.skipped = 0
            if self.config.max_norm is not None and norm > self.config.max_norm:
                return f"gradient norm is {norm:.4g}, expected at most {self.config.max_norm:g}"
        elif self.scaler.is_enabled() and self.skipped < _MAX_SKIPPED:
            self.skipped += 1  # the scale was too large; the scaler skips this step and halves it
        else:
            return f"gradient norm is {norm}, expected a finite number"
        return ""

    def step(self) -> None:
        """Move the weights, the rate and the averaged weights; forget the gradients."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.scheduler.step_update(self.updates)
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)

    def state(self) -> dict[str, Any]:
        """All of it that a checkpoint keeps, the two counters excepted."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        restore_scaler(self.scaler, state["scaler"])


def _scalar(value: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=device).detach()


def _step_seed(*numbers: int) -> int:
    """One seed for the global generators of a forward pass: what dropout draws depends on nothing that ran before."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
