"""Weights and checkpoints: files that are whole or absent; a checkpoint holds all that decides how training goes on."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from lumbar_train.errors import TrainingError
from lumbar_train.files import write_bytes, write_with


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a network's parameters and buffers as safetensors, atomically."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load strictly what ``save_weights`` wrote.

    Raises:
        TrainingError: no such file, not safetensors, or another network's.
    """
    try:
        state = safetensors.torch.load_file(path)
        model.load_state_dict(state, strict=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: not found, expected weights of {type(model).__name__}") from error
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: not weights of this {type(model).__name__} ({reason})") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: plain containers, numbers, text and tensors only."""
    write_with(path, lambda file: torch.save(dict(state), file))


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing but data is unpickled.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TrainingError(f"{path}: not a readable checkpoint ({reason}); delete it to start anew") from error


def rng_state() -> dict[str, Any]:
    """State of every global generator of this process."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - others may draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": random.getstate(),
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put every global generator back."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
