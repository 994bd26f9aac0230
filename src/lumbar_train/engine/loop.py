"""The training loop that every stage shares: deterministic, resumable at any step, on one process or many.

``_Fit`` goes through epochs and steps; what moves the weights is in ``optimisation``, what is counted in ``progress``,
what is written in ``fit_folder``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumbar.io.progress import Progress as Shown
from lumbar_train.engine.checkpoint import restore_rng, rng_state, save_weights
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fit_folder import FitFolder
from lumbar_train.engine.interrupts import (
    TimeLimitReached,
    ends_between_steps,
    is_asked_to_end,
    is_time_up,
    note_saved,
)
from lumbar_train.engine.loop_config import FitResult, LoopConfig, check_config, open_tensorboard
from lumbar_train.engine.optimisation import LossFunction, Optimisation
from lumbar_train.engine.out_of_memory import PartTooLarge, release, smaller_parts
from lumbar_train.engine.progress import Progress
from lumbar_train.engine.sampling import Dataset, Part, Plan, make_loader
from lumbar_train.errors import TrainingError

Validate = Callable[[nn.Module, int], dict[str, float]]
Pending = list[tuple[Part, dict[str, Tensor]]]  # the parts of one optimiser step, with their sums


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
    kept: Path | None = None,
) -> FitResult:
    """Train ``model`` and leave ``last.safetensors``, ``best.safetensors``, ``log.csv`` and ``fit.json`` in a folder.

    Args:
        model: the network; it is moved to the device and trained in place.
        dataset: samples, seeded by (seed, epoch, index).
        loss_fn: ``loss_fn(network, batch) -> (loss, scalars)``. The loss is a mean; ``scalars["weight"]`` is what it
            was divided by (the sum of class weights, the number of visible points), by default the number of
            samples. Given it, cutting the batch changes nothing. Call the network as a function: it may be wrapped.
        config: how to fit.
        out_dir: the fit's own folder.
        validate: ``validate(network, epoch) -> values``, called on every process with the weights that would be kept,
            in evaluation mode; the main process's values count.
        resume: go on from the folder's checkpoint, or return at once where the fit is complete.
        distributed: this process and its peers.
        identity: what else must be the same for a resume to make sense (recipe, cohort, fold).
        kept: where the weights of a complete fit are, once they are no longer in its folder.

    Raises:
        TrainingError: a loss or gradient that is not finite (naming the batch), a checkpoint that does not belong
            here or is damaged, a disk that is full.
    """
    own_identity = {"n_samples": len(dataset)} | dict(identity or {})
    folder = FitFolder(Path(out_dir), config, own_identity, kept)
    return _Fit(model, dataset, loss_fn, config, folder, validate, distributed or Distributed()).run(resume)


def _never() -> None:
    """Stands in for what ends a fit at a signal, where nothing shall."""


class _Fit:
    """One fit: epochs of optimiser steps, validation after each, checkpoints in between."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        loss_fn: LossFunction,
        config: LoopConfig,
        folder: FitFolder,
        validate: Validate | None,
        distributed: Distributed,
    ) -> None:
        check_config(config, len(dataset))
        self.dataset, self.loss_fn, self.config, self.folder = dataset, loss_fn, config, folder
        self.validate, self.distributed = validate, distributed
        self.plan = Plan(len(dataset), config.batch_size, config.accumulate, config.seed, distributed)
        self.optimisation = Optimisation(model, config, distributed, config.epochs * self.plan.n_steps)
        self.loader = make_loader(dataset, self.plan, workers=config.workers, device=distributed.device)
        self.progress = Progress()
        self.saved = time.monotonic()

    def run(self, resume: bool) -> FitResult:
        if resume and self.distributed.broadcast(self.folder.result.is_file()):
            return self.folder.read_result(self.optimisation.model)
        if resume and self.distributed.broadcast(self.folder.checkpoint.is_file()):
            self._restore(self.folder.read_checkpoint())
        elif self.distributed.is_main:
            self.folder.clear()
        self.progress.started = self.saved = time.monotonic()
        shows_curves = self.config.tensorboard and self.distributed.is_main
        writer = open_tensorboard(self.folder.path) if shows_curves else None
        # Several processes would be at different steps; each ends at once, and they go on from the last checkpoint.
        with nullcontext(_never) if self.distributed.is_many else ends_between_steps() as end_if_asked:
            while self.progress.epoch < self.config.epochs:
                self._epoch(end_if_asked)
                self._end_epoch(writer)
                if self.progress.epoch < self.config.epochs:
                    self._end_if_time_is_up()
                end_if_asked()
        if writer is not None:
            writer.close()
        if self.distributed.is_main:
            self.folder.write_result(self.progress, self.optimisation.kept)
        self.distributed.barrier()
        note_saved()
        return self.folder.read_result(self.optimisation.model)

    # One epoch

    def _epoch(self, end_if_asked: Callable[[], None]) -> None:
        """The steps of an epoch; where a part does not fit the memory, on from that step in smaller ones."""
        while not self._steps_fit(end_if_asked):
            release()

    def _steps_fit(self, end_if_asked: Callable[[], None]) -> bool:
        try:
            self._steps(end_if_asked)
        except PartTooLarge:
            pass  # what the error holds is let go before memory is given back
        else:
            return True
        self._cut_smaller()
        return False

    def _cut_smaller(self) -> None:
        share = -(-self.config.batch_size // self.distributed.world)
        n_parts, before = smaller_parts(self.plan.accumulate, share), self.plan.accumulate
        place = f"{self.folder.path}: epoch {self.progress.epoch + 1} step {self.progress.step + 1}"
        if n_parts is None:
            raise TrainingError(
                f"{place}: out of memory with one sample a part, expected room for one; "
                "--set STAGE.checkpointing=true and smaller images take less"
            )
        self.optimisation.optimizer.zero_grad(set_to_none=True)  # the step begins anew
        self.plan.accumulate = n_parts
        if self.distributed.is_main:
            line = f"{place}: out of memory, so batches go on in {n_parts} parts instead of {before}"
            print(line, flush=True)

    def _steps(self, end_if_asked: Callable[[], None]) -> None:
        self.optimisation.network.train()
        progress, n_steps = self.progress, self.plan.n_steps
        parts = self.plan.start(progress.epoch, progress.step)
        title = f"{self._title()}, epoch {progress.epoch + 1} of {self.config.epochs}"
        with Shown(
            n_steps, "step", title=title, n_before=progress.step, is_shown=self.distributed.is_main, is_part=True,
            has_bar=self.config.progress,
        ) as shown:  # fmt: skip
            pending: Pending = []
            for part, batch in zip(parts, self.loader, strict=True):
                pending.append((part, self.optimisation.backward(part, batch, self.loss_fn)))
                if not part.is_last:
                    continue
                loss = self._step(pending)
                pending = []
                shown.update(progress.step, note=f"loss {loss:.4f}")
                if progress.step < n_steps:
                    self._between_steps(end_if_asked)

    def _step(self, pending: Pending) -> float:
        """Move the weights once; gives the step's mean loss over all processes."""
        names = list(pending[0][1])
        stacked = torch.stack([torch.stack([sums[name] for name in names]) for _, sums in pending]).sum(0)
        totals = dict(zip(names, self.distributed.sum(stacked).tolist(), strict=True))
        if not math.isfinite(totals["loss"]):
            self._refuse(pending, f"loss is {totals['loss']}, expected a finite number")
        norm = self.optimisation.clip_gradients(totals["weight"])
        if refusal := self.optimisation.refusal(norm):
            self._refuse(pending, refusal)
        self.optimisation.step()
        self.progress.add_step(totals, norm)
        return float(totals["loss"] / max(totals["weight"], 1.0))

    def _refuse(self, pending: Pending, reason: str) -> None:
        """Raise on every process at once, naming the samples of the parts whose loss is not finite, or of all."""
        bad = [part for part, sums in pending if part.counts and not math.isfinite(float(sums["loss"]))]
        culprits = self.distributed.gather([i for part in bad for i in part.indices])
        everything = self.distributed.gather([i for part, _ in pending if part.counts for i in part.indices])
        indices = [i for some in (culprits if any(culprits) else everything) for i in some]
        describe = getattr(self.dataset, "describe", lambda index: f"sample {index}")
        shown = ", ".join(str(describe(i)) for i in indices[:8]) + (", ..." if len(indices) > 8 else "")
        place = f"{self.folder.path}: epoch {self.progress.epoch + 1} step {self.progress.step + 1}"
        raise TrainingError(f"{place}: {reason}; batch of {len(indices)}: {shown}")

    # After an epoch

    def _end_epoch(self, writer: Any) -> None:
        """Validate, add a row to the log, save."""
        row = self.progress.epoch_row(self.optimisation.updates, self.optimisation.lr)
        if self.plan.accumulate != self.config.accumulate:
            row["parts"] = float(self.plan.accumulate)
        if self.distributed.device.type == "cuda":
            row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if self.validate is not None:
            row |= {f"val_{name}": value for name, value in self._validation(self.validate).items()}
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, self.progress.epoch)
        self.progress.end_epoch(row)
        if self.distributed.is_main:
            self.folder.write_log(self.progress.history)
            print(self.progress.line(self._title(), self.config), flush=True)
        self._save()

    def _title(self) -> str:
        """Stage and fold, after which the folder of a run's fit is named."""
        return f"{self.folder.path.parent.name} {self.folder.path.name}"

    def _validation(self, validate: Validate) -> dict[str, float]:
        """The main process's validation values; the weights are kept if they are the best so far."""
        kept = self.optimisation.kept
        kept.eval()
        with torch.no_grad():
            values = self.distributed.broadcast(validate(kept, self.progress.epoch))
        if self.config.monitor not in values:
            raise TrainingError(f"monitor {self.config.monitor!r}: validation gave {', '.join(values) or 'nothing'}")
        values = {name: float(value) for name, value in values.items()}
        if self.progress.note_best(values, self.config) and self.distributed.is_main:
            save_weights(self.folder.best, kept)
        return dict(values)

    # Surviving a kill

    def _between_steps(self, end_if_asked: Callable[[], None]) -> None:
        """Between two optimiser steps of an epoch a fit may be saved, and go on from there another time."""
        is_asked = is_asked_to_end()
        is_due = is_asked or time.monotonic() - self.saved >= self.config.checkpoint_seconds
        if self.distributed.is_many:  # all at the same step, by the clock of the main process
            is_asked, is_due = self.distributed.broadcast((is_time_up(), is_due))
        if is_due:
            self._save()
        if is_asked and self.distributed.is_many:
            raise TimeLimitReached(has_saved=True)
        if is_asked:
            end_if_asked()

    def _end_if_time_is_up(self) -> None:
        """After an epoch, whose state was saved."""
        if self.distributed.broadcast(is_time_up()):
            raise TimeLimitReached(has_saved=True)

    def _save(self) -> None:
        generators = self.distributed.gather(rng_state())
        self.progress.save_time()
        self.saved = self.progress.started
        if self.distributed.is_main:
            progress, optimisation = self.progress, self.optimisation
            counters = [progress.epoch, progress.step, optimisation.updates, optimisation.skipped]
            state = {"generators": generators, "counters": counters, "accumulate": self.plan.accumulate}
            self.folder.write_checkpoint(optimisation.state() | state | progress.state())
        self.distributed.barrier()
        note_saved()

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimisation.restore(state)
        self.progress.restore(state)
        self.plan.accumulate = state.get("accumulate", self.plan.accumulate)  # more where memory ran out
        counters = state["counters"]
        self.progress.epoch, self.progress.step, self.optimisation.updates, self.optimisation.skipped = counters
        if self.distributed.rank < len(state["generators"]):
            restore_rng(state["generators"][self.distributed.rank])
