"""Which precision a CPU computes in: without units for bf16 it emulates it, many times slower than float32.

The choice is made once a run, noted in its ``recipe.json``, and kept when the run is gone on with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lumbar_train.files import read_object

_LIMIT_S = 0.1  # of the measurement, which has two rounds in any case
_ROUNDS = 20
_CHANNELS = 64
_LEAST_GAIN = 1.15  # how many times as fast bf16 must be to be chosen by ``auto``
_MOST_LOSS = 0.9  # of float32's speed, where bf16 was asked for
_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu, where this torch has them


def chosen_amp(asked: str, device: torch.device, recipe_file: Path, resume: bool) -> tuple[str, str]:
    """The precision of a run's fits, and a line that says so where it is not the one that was asked for.

    Args:
        asked: ``auto``, ``off``, ``bf16`` or ``fp16``.
        device: where the fits compute; on GPUs ``amp_dtype`` decides.
        recipe_file: the run's ``recipe.json``, whose choice is kept when ``resume`` goes on with it.
        resume: whether the run is gone on with.

    Returns:
        the word for ``LoopConfig.amp`` (``auto`` is float32 on CPUs), and the line, which may be empty.
    """
    kept = read_object(recipe_file).get("amp") if resume else None
    if isinstance(kept, dict) and kept.get("asked") == asked:
        return str(kept["used"]), ""
    if device.type != "cpu" or asked not in ("auto", "bf16") or (resume and recipe_file.is_file()):
        return asked, ""  # a run of before the choice was noted goes on as it began
    gain = bf16_gain()
    if asked == "auto":
        if gain < _LEAST_GAIN:
            return "auto", ""
        return "bf16", f"--amp auto: bf16, which this CPU computes {gain:.1f} times as fast as float32"
    if gain >= _MOST_LOSS:
        return "bf16", ""
    reason = "has no units for bf16" if gain == 0.0 else f"computes {1 / gain:.1f} times as fast in float32"
    return "off", f"--amp bf16: this CPU {reason}; float32 is used"


def bf16_gain() -> float:
    """How many times as fast as in float32 this CPU trains in bf16; 0 where torch says that it has no units for it.

    The best of some rounds counts, in turns, so that other work on the machine weighs on both alike. Draws no random
    numbers.
    """
    if not has_bf16_units():
        return 0.0
    layer = _layer()
    images = torch.linspace(-1, 1, 4 * _CHANNELS * 32 * 32).reshape(4, _CHANNELS, 32, 32)
    best = {False: math.inf, True: math.inf}
    begun = time.monotonic()
    for k in range(_ROUNDS):
        for is_half in best:
            seconds = _seconds(layer, images, is_half)
            if k:  # the first round prepares
                best[is_half] = min(best[is_half], seconds)
        if k and time.monotonic() - begun > _LIMIT_S:
            break
    return best[False] / best[True]


def has_bf16_units() -> bool:
    """Whether torch sees AVX512-BF16 or AMX; True where this torch cannot tell (other processors, other versions)."""
    checks: list[Callable[[], bool]] = [getattr(torch.cpu, name) for name in _CHECKS if hasattr(torch.cpu, name)]
    return not checks or any(check() for check in checks)


def _seconds(layer: nn.Module, images: torch.Tensor, is_half: bool) -> float:
    """The time of one convolution forth and back."""
    start = time.monotonic()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        loss = layer(images).square().mean()
    torch.autograd.grad(loss, list(layer.parameters()))
    return time.monotonic() - start


def _layer() -> nn.Module:
    """A convolution with fixed weights: the usual initialisation would move the random numbers of the run."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, _CHANNELS, _CHANNELS, 3, padding=1, bias=False)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.1, 0.1, layer.weight.numel()).reshape(layer.weight.shape))
    return layer
