"""The training loop that every stage shares: deterministic, resumable at any step, on one process or many.

A step's gradient is that of its whole global batch, however it is cut: parts (accumulation) and processes add up sums
of losses, and the total is divided by the total weight once. So two processes, or four parts, follow the same curve as
one process with one part, to float tolerance.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lumbar.io.tables import csv_text
from lumbar_train.engine.checkpoint import load_state, load_weights, restore_rng, rng_state, save_state, save_weights
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.loop_config import (
    FitResult,
    LoopConfig,
    amp_dtype,
    autocast,
    check_config,
    open_tensorboard,
    place,
    restore_scaler,
    wrap,
)
from lumbar_train.engine.loop_config import reason as explain
from lumbar_train.engine.sampling import Batch, Dataset, Part, Plan, make_loader, to_device
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_text

LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Any]]]
Validate = Callable[[nn.Module, int], dict[str, float]]

_MAX_SKIPPED = 50  # fp16 steps in a row without a finite gradient; the scale halves each time, 2**16 is long gone
_HARMLESS = ("workers", "checkpoint_seconds", "tensorboard", "progress")  # may differ when a fit is resumed


def fit(
    model: nn.Module,
    dataset: Dataset,
    loss_fn: LossFunction,
    *,
    config: LoopConfig,
    out_dir: Path | str,
    validate: Validate | None = None,
    resume: bool = False,
    distributed: Distributed | None = None,
    identity: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train ``model`` and leave ``last.safetensors``, ``best.safetensors``, ``log.csv`` and ``fit.json`` in a folder.

    Args:
        model: the network; it is moved to the device and trained in place.
        dataset: samples, seeded by (seed, epoch, index).
        loss_fn: ``loss_fn(network, batch) -> (loss, scalars)``. The loss is a mean; ``scalars["weight"]`` is what it
            was divided by (the sum of class weights, the number of visible points), by default the number of
            samples. Given it, cutting the batch changes nothing. Call the network as a function: it may be wrapped.
        config: how.
        out_dir: the fit's own folder.
        validate: ``validate(network, epoch) -> values``, called on every process with the weights that would be kept,
            in evaluation mode; the first process's values count.
        resume: go on from the folder's checkpoint, or return at once where the fit is complete.
        distributed: this process among its peers.
        identity: what else must be the same for a resume to make sense (recipe, cohort, fold).

    Raises:
        TrainingError: a loss or gradient that is not finite (naming the batch), a checkpoint that does not belong
            here or is damaged, a disk that is full.
    """
    return _Fit(model, dataset, loss_fn, config, Path(out_dir), validate, distributed or Distributed(), identity).run(
        resume
    )


class _Fit:
    """One fit's moving parts; all that must survive a kill is in ``_state``."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        loss_fn: LossFunction,
        config: LoopConfig,
        out_dir: Path,
        validate: Validate | None,
        distributed: Distributed,
        identity: Mapping[str, Any] | None,
    ) -> None:
        check_config(config, len(dataset))
        self.dataset, self.loss_fn, self.config, self.out_dir = dataset, loss_fn, config, out_dir
        self.validate, self.distributed = validate, distributed
        self.identity = json.loads(json.dumps({"n_samples": len(dataset)} | dict(identity or {}), default=str))
        self.model = place(model, config, distributed)
        self.network = wrap(self.model, config, distributed)
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.plan = Plan(len(dataset), config.batch_size, config.accumulate, config.seed, distributed)
        n_updates = config.epochs * self.plan.n_steps
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
        self.scaler = torch.amp.GradScaler(
            distributed.device.type, enabled=amp_dtype(config, distributed.device) == torch.float16
        )
        self.loader = make_loader(dataset, self.plan, workers=config.workers, device=distributed.device)
        self.epoch = self.step = self.updates = self.skipped = 0
        self.totals: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.started = self.saved = time.monotonic()

    @property
    def kept(self) -> nn.Module:
        """The network whose weights are validated and kept."""
        return self.ema.module if self.ema is not None else self.model

    def run(self, resume: bool) -> FitResult:
        done = self.out_dir / "fit.json"
        if resume and self.distributed.broadcast(done.is_file()):
            return self._finished(done)
        if resume and self.distributed.broadcast((self.out_dir / "checkpoint.pt").is_file()):
            self._restore(load_state(self.out_dir / "checkpoint.pt"))
        elif self.distributed.is_main:
            for name in ("fit.json", "checkpoint.pt", "best.safetensors", "last.safetensors", "log.csv"):
                (self.out_dir / name).unlink(missing_ok=True)
        self.started = self.saved = time.monotonic()
        writer = open_tensorboard(self.out_dir) if self.config.tensorboard and self.distributed.is_main else None
        while self.epoch < self.config.epochs:
            self._epoch()
            self._end_epoch(writer)
        if writer is not None:
            writer.close()
        return self._finish(done)

    # One epoch

    def _epoch(self) -> None:
        self.network.train()
        parts = self.plan.start(self.epoch, self.step)
        n_steps = self.plan.n_steps
        title = f"{self.out_dir.name} {self.epoch + 1}/{self.config.epochs}"
        is_shown = self.config.progress and self.distributed.is_main
        with tqdm(total=n_steps, initial=self.step, desc=title, unit="step", disable=not is_shown) as bar:
            pending: list[tuple[Part, dict[str, Tensor]]] = []
            for part, batch in zip(parts, self.loader, strict=True):
                pending.append((part, self._backward(part, batch)))
                if not part.is_last:
                    continue
                loss = self._update(pending)
                pending = []
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if self.step < n_steps and self._is_due():
                    self._save()

    def _backward(self, part: Part, batch: Batch) -> dict[str, Tensor]:
        """Add a part's gradient of the loss *sum*; return sums of loss, weight and scalars on the device."""
        device, distributed = self.distributed.device, self.distributed
        batch = to_device(batch, device, channels_last=self.config.channels_last)
        torch.manual_seed(_step_seed(self.config.seed, part.epoch, part.step, distributed.rank, part.indices[0]))
        is_quiet = isinstance(self.network, DistributedDataParallel) and not part.is_last
        with self.network.no_sync() if is_quiet else nullcontext():
            with autocast(self.config, device):
                loss, scalars = self.loss_fn(self.network, batch)
            scalars = dict(scalars)
            weight = _scalar(scalars.pop("weight", len(part.indices)), device) * float(part.counts)
            # The processes' gradients are averaged when exchanged: times their number makes it the sum. The nominal
            # batch size only keeps half-precision gradients in range until the true weight is known.
            scaled = self.scaler.scale(loss.float() * weight * (distributed.world / self.config.batch_size))
            torch.autograd.backward(scaled)
        sums = {"loss": loss.detach().double() * weight, "weight": weight}
        sums |= {name: _scalar(scalars[name], device) * weight for name in sorted(scalars)}
        return sums | {"samples": _scalar(len(part.indices) * part.counts, device)}

    def _update(self, pending: list[tuple[Part, dict[str, Tensor]]]) -> float:
        """Divide by the weight of the whole step (1 at least), guard, clip, move; return the step's mean loss."""
        names = list(pending[0][1])
        stacked = torch.stack([torch.stack([sums[name] for name in names]) for _, sums in pending]).sum(0)
        totals = dict(zip(names, self.distributed.sum(stacked).tolist(), strict=True))
        weight = totals["weight"]
        if not math.isfinite(totals["loss"]):
            self._refuse(pending, f"loss is {totals['loss']}")
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.config.batch_size / max(weight, 1.0))
        limit = self.config.clip_norm if self.config.clip_norm is not None else math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        self._guard(norm, pending)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.scheduler.step_update(self.updates)
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)
        totals |= {"grad_norm": norm * weight if math.isfinite(norm) else 0.0, "steps": 1.0}
        totals["skipped"] = float(not math.isfinite(norm))
        for name, value in totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        return float(totals["loss"] / max(weight, 1.0))

    def _guard(self, norm: float, pending: list[tuple[Part, dict[str, Tensor]]]) -> None:
        if math.isfinite(norm):
            self.skipped = 0
        elif self.scaler.is_enabled() and self.skipped < _MAX_SKIPPED:
            self.skipped += 1  # the scale was too large; the scaler skips this step and halves it
            return
        else:
            self._refuse(pending, f"gradient norm is {norm}")
        if self.config.max_norm is not None and norm > self.config.max_norm:
            self._refuse(pending, f"gradient norm is {norm:.4g}, expected at most {self.config.max_norm:g}")

    def _refuse(self, pending: list[tuple[Part, dict[str, Tensor]]], what: str) -> None:
        """Raise on every process at once, naming the samples of the parts whose loss is not finite, or of all."""
        bad = [part for part, sums in pending if part.counts and not math.isfinite(float(sums["loss"]))]
        found = self.distributed.gather([i for part in bad for i in part.indices])
        everything = self.distributed.gather([i for part, _ in pending if part.counts for i in part.indices])
        indices = [i for some in (found if any(found) else everything) for i in some]
        describe = getattr(self.dataset, "describe", lambda index: f"sample {index}")
        shown = ", ".join(str(describe(i)) for i in indices[:8]) + (", ..." if len(indices) > 8 else "")
        raise TrainingError(
            f"{self.out_dir}: epoch {self.epoch + 1} step {self.step + 1}: {what}, expected a finite number; "
            f"batch of {len(indices)}: {shown}"
        )

    # After an epoch

    def _end_epoch(self, writer: Any) -> None:
        row = self._train_row()
        values: dict[str, float] = {}
        if self.validate is not None:
            self.kept.eval()
            with torch.no_grad():
                values = self.distributed.broadcast(self.validate(self.kept, self.epoch))
            if self.config.monitor not in values:
                raise TrainingError(
                    f"monitor {self.config.monitor!r}: validation gave {', '.join(values) or 'nothing'}"
                )
            row |= {f"val_{name}": float(value) for name, value in values.items()}
            self._keep_best({name: float(value) for name, value in values.items()})
        self.history.append(row)
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, self.epoch)
        self.epoch, self.step, self.totals = self.epoch + 1, 0, {}
        if self.distributed.is_main:
            write_text(self.out_dir / "log.csv", csv_text(pd.DataFrame(self.history)))
        self._save()

    def _train_row(self) -> dict[str, float]:
        totals = dict(self.totals)
        weight, n_steps, samples, skipped = (totals.pop(n) for n in ("weight", "steps", "samples", "skipped"))
        seconds = self.seconds + time.monotonic() - self.started
        spent = seconds - (self.history[-1]["seconds"] if self.history else 0.0)
        row = {"epoch": float(self.epoch), "updates": float(self.updates), "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {name: value / max(weight, 1e-12) for name, value in totals.items()}
        row |= {"skipped": skipped, "samples": samples, "steps": n_steps, "seconds": seconds}
        row["samples_per_s"] = samples / max(spent, 1e-9)
        if self.distributed.device.type == "cuda":
            row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return row

    def _keep_best(self, values: dict[str, float]) -> None:
        value = values[self.config.monitor]
        former = self.best.get(self.config.monitor, -math.inf if self.config.is_higher_better else math.inf)
        if value > former if self.config.is_higher_better else value < former:
            self.best = values | {"epoch": float(self.epoch)}
            if self.distributed.is_main:
                save_weights(self.out_dir / "best.safetensors", self.kept)

    # Surviving a kill

    def _is_due(self) -> bool:
        is_due = time.monotonic() - self.saved >= self.config.checkpoint_seconds
        return bool(self.distributed.broadcast(is_due)) if self.distributed.is_many else is_due

    def _save(self) -> None:
        generators = self.distributed.gather(rng_state())
        now = time.monotonic()
        self.seconds += now - self.started
        self.started = self.saved = now
        if self.distributed.is_main:
            save_state(self.out_dir / "checkpoint.pt", self._state(generators))
        self.distributed.barrier()

    def _state(self, generators: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "identity": self.identity,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": generators,
            "counters": [self.epoch, self.step, self.updates, self.skipped],
            "totals": self.totals,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._check_same(state)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        restore_scaler(self.scaler, state["scaler"])
        self.epoch, self.step, self.updates, self.skipped = state["counters"]
        self.totals, self.history, self.best = state["totals"], state["history"], state["best"]
        self.seconds = state["seconds"]
        if self.distributed.rank < len(state["generators"]):
            restore_rng(state["generators"][self.distributed.rank])

    def _check_same(self, state: dict[str, Any]) -> None:
        here = {name: value for name, value in asdict(self.config).items() if name not in _HARMLESS} | self.identity
        there = state["config"] | state["identity"]
        differing = [name for name, value in here.items() if there.get(name) != value]
        if differing:
            name = differing[0]
            raise TrainingError(
                f"{self.out_dir / 'checkpoint.pt'}: made with {name} {there.get(name)!r}, found {here[name]!r} now; "
                "resume with the same settings, or start anew without --resume"
            )

    # The end

    def _finish(self, done: Path) -> FitResult:
        last = self.out_dir / "last.safetensors"
        has_best = bool(self.best)
        use_best = has_best and self.config.keep == "best"
        reason = explain(self.config, self.best, self.history, use_best)
        metrics = self.best if use_best else _last_metrics(self.history)
        if self.distributed.is_main:
            save_weights(last, self.kept)
            content = {
                "weights": "best" if use_best else "last",
                "has_best": has_best,
                "reason": reason,
                "metrics": metrics,
                "history": self.history,
                "seconds": self.seconds,
                "identity": self.identity,
                "config": asdict(self.config),
            }
            write_text(done, json.dumps(content, indent=1))
            (self.out_dir / "checkpoint.pt").unlink(missing_ok=True)
        self.distributed.barrier()
        return self._finished(done)

    def _finished(self, done: Path) -> FitResult:
        """The result of a complete fit, read from its folder; the network takes the weights to use."""
        content = json.loads(done.read_text("utf-8"))
        self._check_same(content)
        best = self.out_dir / "best.safetensors" if content["has_best"] else None
        last = self.out_dir / "last.safetensors"
        weights = best if content["weights"] == "best" and best is not None else last
        load_weights(weights, self.model)
        self.model.eval()
        return FitResult(
            weights, content["reason"], best, last, content["metrics"], content["history"], content["seconds"]
        )


def _scalar(value: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=device).detach()


def _step_seed(*numbers: int) -> int:
    """One seed for the global generators of a forward pass: what dropout draws depends on nothing that ran before."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _last_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    row = history[-1]
    return {n.removeprefix("val_"): v for n, v in row.items() if n.startswith("val_")} | {"epoch": row["epoch"]}
