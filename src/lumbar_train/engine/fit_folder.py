"""The folder of one fit: checkpoint while it runs; weights, log and ``fit.json`` when it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from lumbar.io.tables import csv_text
from lumbar_train.engine.checkpoint import load_state, load_weights, save_state, save_weights
from lumbar_train.engine.loop_config import FitResult, LoopConfig, reason
from lumbar_train.engine.progress import Progress
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_text

# What may differ when a fit is resumed.
_HARMLESS = (
    "workers",
    "checkpoint_seconds",
    "tensorboard",
    "progress",
    "channels_last",
    "epochs_beyond",
)


class FitFolder:
    """Reads and writes the files of one fit; refuses files that were made with other settings.

    Args:
        path: the folder; made when the first file is written.
        config: how the fit is done.
        identity: what else must be the same for a resume to make sense.
        kept: where the weights of a complete fit are once they are no longer in its folder.
    """

    def __init__(self, path: Path, config: LoopConfig, identity: Mapping[str, Any], kept: Path | None = None) -> None:
        self.path, self.config, self.kept = path, config, kept
        self.identity = json.loads(json.dumps(dict(identity), default=str))  # as a checkpoint gives it back
        self.result = path / "fit.json"
        self.checkpoint = path / "checkpoint.pt"
        self.best, self.last, self.log = path / "best.safetensors", path / "last.safetensors", path / "log.csv"

    def clear(self) -> None:
        """Remove what a former fit left, so that none of it is taken for this one's."""
        for file in (self.result, self.checkpoint, self.best, self.last, self.log):
            file.unlink(missing_ok=True)

    def write_log(self, history: list[dict[str, float]]) -> None:
        """Write ``log.csv``, one row for each epoch."""
        write_text(self.log, csv_text(pd.DataFrame(history)))

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state of a running fit, whole or not at all."""
        save_state(self.checkpoint, {"config": asdict(self.config), "identity": self.identity} | state)

    def read_checkpoint(self) -> dict[str, Any]:
        """The state of a fit that was interrupted.

        Raises:
            TrainingError: it is damaged, or was made with other settings.
        """
        state = load_state(self.checkpoint)
        self._check_same(state)
        return state

    def write_result(self, progress: Progress, kept: nn.Module) -> None:
        """Write the last weights and ``fit.json``; the checkpoint, which they replace, is removed."""
        use_best = bool(progress.best) and self.config.keep == "best"
        save_weights(self.last, kept)
        content = {
            "weights": "best" if use_best else "last",
            "has_best": bool(progress.best),
            "reason": reason(self.config, progress.best, progress.history, use_best),
            "metrics": progress.best if use_best else _last_metrics(progress.history),
            "history": progress.history,
            "seconds": progress.seconds,
            "identity": self.identity,
            "config": asdict(self.config),
        }
        write_text(self.result, json.dumps(content, indent=1))
        self.checkpoint.unlink(missing_ok=True)

    def read_result(self, model: nn.Module) -> FitResult:
        """The result of a complete fit; ``model`` takes the weights to use.

        Raises:
            TrainingError: it was made with other settings, or its weights are not this network's.
        """
        content = json.loads(self.result.read_text("utf-8"))
        self._check_same(content)
        best = self.best if content["has_best"] else None
        weights = best if content["weights"] == "best" and best is not None else self.last
        if self.kept is not None and not weights.is_file():
            weights = self.kept
        load_weights(weights, model)
        model.eval()
        return FitResult(
            weights, content["reason"], best, self.last, content["metrics"], content["history"], content["seconds"]
        )

    def _check_same(self, state: Mapping[str, Any]) -> None:
        here = {name: value for name, value in asdict(self.config).items() if name not in _HARMLESS} | self.identity
        there = asdict(LoopConfig()) | state["config"] | state["identity"]  # an option that is newer was as by default
        differing = [name for name, value in here.items() if there.get(name) != value]
        if differing:
            name = differing[0]
            raise TrainingError(
                f"{self.checkpoint}: made with {name} {there.get(name)!r}, found {here[name]!r} now; "
                "resume with the same settings, or fit the stage again (--stages, --overwrite)"
            )


def _last_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    row = history[-1]
    return {n.removeprefix("val_"): v for n, v in row.items() if n.startswith("val_")} | {"epoch": row["epoch"]}
