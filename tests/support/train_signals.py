"""``python -m lumbar_train train`` with toy fits that last until a signal comes; run as a script.

``HOW`` in the environment: ``steps`` are short, a ``long step`` waits in Python, a ``stuck`` one in foreign code, where
no signal is seen; with ``loaders`` two processes a fit prepare the samples of short steps; with ``failing`` the first
fold fails once the second has begun.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import lumbar_train.__main__ as command_line
from lumbar.io import signals
from lumbar_train.engine import interrupts, process_pool
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fold_pool import run_side_by_side, workers
from lumbar_train.errors import TrainingError
from train_toy_fit import TOY, ToyDataset, run_toy

if os.environ.get("HOW") in ("steps", "loaders", "failing"):  # what ends by itself may take its time on a busy machine
    interrupts.STEP_S, process_pool.STOP_S, signals.GRACE_S = 40.0, 60.0, 90.0
STAGE = "axial_xy"
FOREVER_S = 900


@dataclass
class ToyRun:
    out: Path
    how: str
    distributed: Distributed = field(default_factory=Distributed)
    devices: tuple[torch.device, ...] = ()


class Lasting(ToyDataset):
    """Gives one whole batch, says so, and then lasts as it is told."""

    def __init__(self, folder: Path, how: str) -> None:
        super().__init__(400)
        self.folder, self.how, self.given = folder, how, 0

    def sample(self, index, rng):
        self.given += 1
        if self.given == 17:
            (self.folder / "begun").touch()
        if self.given > 17 and self.how == "stuck":
            ctypes.CDLL(None).sleep(FOREVER_S)
        time.sleep(FOREVER_S if self.given > 17 and self.how == "long step" else 0.02)
        return super().sample(index, rng)


def work(run: ToyRun, stage: str, fold: int) -> None:
    folder = run.out / stage / f"fold{fold}"
    folder.mkdir(parents=True)
    if run.how == "failing" and fold == 0:
        while not (run.out / stage / "fold1/begun").exists():
            time.sleep(0.05)
        time.sleep(1.0)  # in which the second makes steps
        raise TrainingError("fold 0: loss is nan, expected a finite number")
    checkpoints = 0.0 if run.how in ("long step", "stuck") else 1e9
    loaders = 2 if run.how == "loaders" else 0
    config = replace(TOY, epochs=1000, checkpoint_seconds=checkpoints, workers=loaders)
    run_toy(folder, Lasting(folder, run.how), config)


def train(out: Path, jobs: int, **_options: object) -> None:
    run = ToyRun(out, os.environ["HOW"])
    with workers(jobs) as pool:
        run_side_by_side(run, work, STAGE, [0, 1, 2], pool, jobs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command_line.train = train
    sys.exit(command_line.command())
