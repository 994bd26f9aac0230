"""How far a fit has come, and its log: sums over the epoch that is running, one row for each that is done."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lumbar.io.progress import duration
from lumbar_train.engine.loop_config import LoopConfig


@dataclass
class Progress:
    """Place in the data, figures so far, and time spent; a resumed fit goes on from all of it.

    Attributes:
        epoch: epochs that are done.
        step: optimiser steps of the running epoch that are done.
        totals: sums over those steps.
        history: one row for each epoch that is done, as in ``log.csv``.
        best: the validation values of the best epoch so far, with its ``epoch``.
        seconds: time spent before ``started``, over resumes.
        started: clock of this process when its time began to count.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add_step(self, totals: Mapping[str, float], grad_norm: float) -> None:
        """Add one optimiser step's sums; a step whose gradient is not finite was skipped."""
        is_finite = math.isfinite(grad_norm)
        sums = dict(totals) | {
            "grad_norm": grad_norm * totals["weight"] if is_finite else 0.0,
            "steps": 1.0,
            "skipped": float(not is_finite),
        }
        for name, value in sums.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.step += 1

    def elapsed(self) -> float:
        """Seconds spent in all, over resumes."""
        return self.seconds + time.monotonic() - self.started

    def epoch_row(self, updates: int, lr: float) -> dict[str, float]:
        """The row of the epoch that has just been trained: means, counts, rate, time."""
        totals = dict(self.totals)
        weight, n_steps, samples, skipped = (totals.pop(n) for n in ("weight", "steps", "samples", "skipped"))
        seconds = self.elapsed()
        spent = seconds - (self.history[-1]["seconds"] if self.history else 0.0)
        row = {"epoch": float(self.epoch), "updates": float(updates), "lr": lr}
        row |= {name: value / max(weight, 1e-12) for name, value in totals.items()}
        row |= {"skipped": skipped, "samples": samples, "steps": n_steps, "seconds": seconds}
        row["samples_per_s"] = samples / max(spent, 1e-9)
        return row

    def line(self, title: str, config: LoopConfig) -> str:
        """One line about the epoch that was logged last: loss, held-out figure, seconds, time left.

        Args:
            title: what is fitted, such as ``axial_xy fold0``.
            config: of the fit.
        """
        row = self.history[-1]
        before = self.history[-2]["seconds"] if len(self.history) > 1 else 0.0
        text = f"{title}, epoch {self.epoch} of {config.epochs}: loss {row['loss']:.4f}"
        if (held_out := row.get(f"val_{config.monitor}")) is not None:
            text += f", held out {held_out:.4f}"
        text += f", {row['seconds'] - before:.1f} s"
        n_left = config.epochs - self.epoch + config.epochs_beyond
        if n_left <= 0:
            return text
        left_s = row["seconds"] / self.epoch * n_left
        whole = "the whole run" if config.epochs_beyond else "this fit"
        return f"{text}; {whole}: about {duration(left_s)} left"

    def note_best(self, values: dict[str, float], config: LoopConfig) -> bool:
        """Take this epoch's validation values as the best if they are; says whether they are."""
        value = values[config.monitor]
        former = self.best.get(config.monitor, -math.inf if config.is_higher_better else math.inf)
        is_better = value > former if config.is_higher_better else value < former
        if is_better:
            self.best = values | {"epoch": float(self.epoch)}
        return is_better

    def end_epoch(self, row: dict[str, float]) -> None:
        """Go on to the next epoch."""
        self.history.append(row)
        self.epoch, self.step, self.totals = self.epoch + 1, 0, {}

    def save_time(self) -> None:
        """Put the time since ``started`` into ``seconds``, before a checkpoint is written."""
        now = time.monotonic()
        self.seconds += now - self.started
        self.started = now

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside epoch and step."""
        return {"totals": self.totals, "history": self.history, "best": self.best, "seconds": self.seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.totals, self.history, self.best = state["totals"], state["history"], state["best"]
        self.seconds = state["seconds"]
