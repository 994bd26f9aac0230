"""How a fit is set up: its options, its result, the precision, and where the network lies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lumbar_train.engine.activation_checkpoints import checkpoint_activations
from lumbar_train.engine.distributed import Distributed
from lumbar_train.errors import TrainingError


@dataclass(frozen=True)
class LoopConfig:
    """Options of a fit. ``batch_size`` counts the samples of an optimiser step over all processes and parts.

    Attributes:
        epochs: passes over the data.
        batch_size: samples a step; the last step of an epoch may hold fewer.
        accumulate: parts that each process cuts its share of a batch into.
        lr: peak learning rate.
        weight_decay: not applied to biases and normalisation.
        optimizer: timm's name.
        warmup: share of all steps with rising rate, from 0.
        lr_min: where the cosine ends.
        clip_norm: gradients are scaled down to this norm; None leaves them.
        max_norm: a larger norm ends the fit, naming the batch; None lets any finite norm pass.
        ema_decay: of the averaged weights that are validated and kept; None keeps the raw ones.
        amp: ``auto`` (bf16 or fp16 by GPU, off on CPU), ``off``, ``bf16`` (on CPUs too), ``fp16`` (off on CPU).
        channels_last: memory format of network and images; None: on GPUs, whose tensor cores read it.
        checkpointing: the backbone's activations are computed anew in the backward pass.
        compile: run the network through ``torch.compile``.
        seed: of order, augmentation and dropout.
        workers: loader processes; 0 loads in this one.
        monitor: which value of ``validate`` decides what is best.
        is_higher_better: whether a higher value is the better one.
        keep: ``last`` or ``best``: which weights the result names. ``last`` by default, because the best epoch was
            chosen on the very studies that the out-of-fold outputs are scored on.
        checkpoint_seconds: at least so often, and at each epoch's end, the state is saved.
        tensorboard: write event files (needs the extra of that name).
        progress: show a bar on a terminal; else a line a minute, as where there is no terminal.
        epochs_beyond: epochs that the run's other fits will take one after another, for the time that is left.
    """

    epochs: int = 8
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 2e-4
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    warmup: float = 0.1
    lr_min: float = 0.0
    clip_norm: float | None = 1.0
    max_norm: float | None = None
    ema_decay: float | None = None
    amp: str = "auto"
    channels_last: bool | None = None
    checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    workers: int = 0
    monitor: str = "loss"
    is_higher_better: bool = False
    keep: str = "last"
    checkpoint_seconds: float = 300.0
    tensorboard: bool = False
    progress: bool = True
    epochs_beyond: float = 0.0


@dataclass(frozen=True)
class FitResult:
    """What a fit left in its folder.

    Attributes:
        weights: the file to use.
        reason: why it and not the other.
        best: best by the monitored value; None without validation.
        last: at the end of the last epoch.
        metrics: the validation values of the weights to use, with their ``epoch`` (0-based).
        history: one row an epoch, as in ``log.csv``.
        seconds: time spent in all, over resumes.
    """

    weights: Path
    reason: str
    best: Path | None
    last: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds: float


def amp_dtype(config: LoopConfig, device: torch.device) -> torch.dtype | None:
    """Which half precision, or None for float32.

    Raises:
        TrainingError: an unknown word.
    """
    if config.amp not in ("auto", "off", "bf16", "fp16"):
        raise TrainingError(f"amp: found {config.amp!r}, expected auto, off, bf16 or fp16")
    if config.amp == "off" or (device.type == "cpu" and config.amp != "bf16"):
        return None
    if config.amp == "auto":  # a T4 emulates bf16 slowly; its fp16 is fast
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if config.amp == "bf16" else torch.float16


def autocast(config: LoopConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Computes a block in the precision of a fit, for validation and prediction too."""
    dtype = amp_dtype(config, device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def restore_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Put a gradient scaler back; a checkpoint of a fit in another precision holds no scale, so it starts anew.

    The precision follows the device (``auto``): a fit begun in bf16 or float32 may go on in fp16, and the other way.
    """
    if scaler.is_enabled() and state:
        scaler.load_state_dict(dict(state))


def check_config(config: LoopConfig, n_samples: int) -> None:
    """Refuse options without a meaning, and an empty dataset.

    Raises:
        TrainingError: naming the option.
    """
    if n_samples < 1:
        raise TrainingError("fit: the dataset is empty, expected at least one sample")
    for name in ("epochs", "batch_size", "accumulate"):
        if getattr(config, name) < 1:
            raise TrainingError(f"{name}: found {getattr(config, name)}, expected 1 or more")
    if config.keep not in ("last", "best"):
        raise TrainingError(f"keep: found {config.keep!r}, expected last or best")


def is_channels_last(config: LoopConfig, device: torch.device) -> bool:
    """Whether network and images of a fit lie in memory with their channels last."""
    return device.type == "cuda" if config.channels_last is None else config.channels_last


def place(model: nn.Module, config: LoopConfig, distributed: Distributed) -> nn.Module:
    """The network on its device; batch statistics are shared between GPUs (SyncBatchNorm does not run on CPU)."""
    if distributed.is_many and distributed.device.type == "cuda":
        model = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(model)
    if config.checkpointing:
        checkpoint_activations(model)
    if is_channels_last(config, distributed.device):
        model = cast(Any, model).to(memory_format=torch.channels_last)
    return model.to(distributed.device)


def reason(config: LoopConfig, best: dict[str, float], history: list[dict[str, float]], use_best: bool) -> str:
    """Why these weights are the ones to use, in words."""
    averaged = "averaged weights" if config.ema_decay else "weights"
    if not best:
        return f"last {averaged}: nothing was held out to choose an epoch by"
    name = config.monitor
    scores = f"best {name} {best[name]:.4f} in epoch {best['epoch'] + 1:.0f}, last {history[-1][f'val_{name}']:.4f}"
    if use_best:
        return f"best {averaged} by {name}, as asked: {scores}; their score on the same studies flatters"
    return f"last {averaged}: choosing an epoch on the held-out studies would flatter their score ({scores})"


def open_tensorboard(folder: Path) -> Any:
    """A writer of event files.

    Raises:
        TrainingError: the extra is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(f"tensorboard: {error}; install the extra: pip install lumbar-kit[tensorboard]") from error
    return SummaryWriter(str(folder / "tensorboard"))
