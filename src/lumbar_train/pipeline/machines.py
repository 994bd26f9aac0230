"""How fast and how large machines are: the one table between counted operations and hours.

A machine's rate is its vendor's peak times a utilisation. Networks of this kind (EfficientNetV2, batch statistics,
SiLU) are limited by memory bandwidth, far below the peak of the tensor cores. The utilisation comes from timm's own
benchmark (``results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv`` in huggingface/pytorch-image-models):
``efficientnetv2_rw_t`` trains 1,099 images of 224 px a second in half precision, channels last, on an RTX 3090. With
the 11.4 GFLOP that this package counts for such an image that is 12.6 TFLOP/s at 936 GB/s. Carried over by memory
bandwidth (NVIDIA's data sheets: T4 320 GB/s, A100 40 GB 1,555 GB/s) it is 4.3 and 20.9 TFLOP/s: 6.6 and 6.7 % of 65 and
312. For comparison: NVIDIA reports 331 images a second for EfficientNet-B4 on an A100 80 GB (DeepLearningExamples), 8
TFLOP/s with its thinner depthwise layers. Timed on an H100 (3,350 GB/s: 45 TFLOP/s by the same rule), large batches of
``model2`` and ``strong`` trained at 15 to 28 TFLOP/s (docs/measurements.md). So the rates are good to a factor of two
to three, and rather too high; small batches, and small networks such as ``demo``'s, reach less.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lumbar.config import AxialRegressionConfig, BackboneConfig, to_dict
from lumbar.models import build, name_of
from lumbar_train.errors import TrainingError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_PROBE_SIZE, _PROBE_IMAGES = 96, 2


@dataclass(frozen=True)
class Machine:
    """One device's speed.

    Attributes:
        name: for the table.
        peak: operations a second by the vendor's data sheet, half precision with tensor cores.
        utilisation: of the peak in training (module's text).
        source: of the peak.
    """

    name: str
    peak: float
    utilisation: float
    source: str

    @property
    def rate(self) -> float:
        """Operations a second in training."""
        return self.peak * self.utilisation

    def hours(self, flops: float) -> float:
        """Time for so many operations on one such device."""
        return flops / self.rate / 3600


T4 = Machine("T4", 65e12, 0.066, "NVIDIA T4 data sheet: 65 TFLOPS mixed precision (FP16/FP32)")
A100 = Machine("A100", 312e12, 0.067, "NVIDIA A100 data sheet: 312 TFLOPS BFLOAT16/FP16 tensor core, dense")


def measured_here(device: torch.device, backbone: str = "resnet10t") -> Machine:
    """This machine's own rate: operations a second of a small training step of a backbone, timed on the device.

    On a CPU one thread is timed by the processor's clock, and counted once for each thread that torch would use: by the
    wall clock two threads that wait for one another on a busy machine seem a hundred times as slow.
    """
    from lumbar_train.pipeline.cost import network_cost
    from lumbar_train.stages.losses import axial_regression_loss

    config = AxialRegressionConfig(BackboneConfig(backbone), size=_PROBE_SIZE)
    is_cpu = device.type == "cpu"
    n = _PROBE_IMAGES if is_cpu else 32
    flops = network_cost(config, axial_regression_loss, slices=1).training_flops * n
    network = build(name_of(config), to_dict(config)).to(device).train()
    images = torch.rand(n, 1, _PROBE_SIZE, _PROBE_SIZE, device=device)
    n_threads, clock = torch.get_num_threads(), time.thread_time if is_cpu else time.perf_counter
    seconds = float("inf")
    if is_cpu:
        torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            for _ in range(3):  # the first one warms up
                start = clock()
                with torch.autocast(device.type, enabled=not is_cpu, dtype=torch.float16):
                    loss = network(images).float().square().mean()
                loss.backward()
                if not is_cpu:
                    torch.cuda.synchronize(device)
                seconds = min(seconds, clock() - start)
    finally:
        torch.set_num_threads(n_threads)
    rate = flops / seconds * (n_threads if is_cpu else 1)
    where = f"{n_threads} threads of the cpu, each as fast as one alone" if is_cpu else str(device)
    return Machine("here", rate, 1.0, f"measured: {backbone}, {n} images of {_PROBE_SIZE} px, {where}")


def parse_memory(text: str) -> int:
    """``16GB``, ``14.5 GiB`` or plain bytes as a number of bytes.

    Raises:
        TrainingError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    value = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if not 0 < value < 2**60:
        raise TrainingError(f"--memory: found {text!r}, expected an amount of memory such as 16GB or 14.5GiB")
    return int(value)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device: the GPU's, or the machine's RAM."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
