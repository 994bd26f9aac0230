"""One fit of one stage: its name, its settings for the loop, its weights."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lumbar_train.data.folds import FULL
from lumbar_train.data.folds import fold_name as fold_name
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_text
from lumbar_train.recipes import StageRecipe


def fit_seed(seed: int, fold: int) -> int:
    """The seed of a fit's order and augmentation: the run's, moved on for each further fit on all data."""
    return seed + max(0, FULL - fold) * 7919


def loop_config(stage: StageRecipe, seed: int, overrides: dict[str, Any]) -> LoopConfig:
    """A stage's fit as the loop's configuration."""
    fit_ = stage.fit
    values = {
        "epochs": fit_.epochs,
        "batch_size": fit_.batch,
        "accumulate": fit_.accumulate,
        "lr": fit_.lr,
        "weight_decay": fit_.weight_decay,
        "warmup": fit_.warmup,
        "clip_norm": fit_.clip,
        "ema_decay": fit_.ema or None,
        "seed": seed,
        "unused_parameters": True,
    }
    return LoopConfig(**(values | overrides))


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load a stage's weights strictly.

    Raises:
        TrainingError: the stage has not been fitted, or its weights are another network's.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: not found, expected the weights of an earlier stage; run that stage first")
    try:
        network.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: not weights of this {type(network).__name__} ({reason})") from error
    return network


def has_begun(folder: Path) -> bool:
    """Whether a fit has left something to resume."""
    return (folder / "fit.json").is_file() or (folder / "checkpoint.pt").is_file()


def note_seconds(run: Path, step: str, seconds: float, device: torch.device) -> None:
    """Add to ``seconds.json`` how long a step took, and on what."""
    path = run / "seconds.json"
    noted = json.loads(path.read_text()) if path.is_file() else {}
    noted[step] = round(seconds, 1)
    noted["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}"
    write_text(path, json.dumps(noted, indent=1))
