"""A run on a real GPU against its forward passes alone, with several studies in flight: ``chain.py --gpu``.

The passes of a study are kept as they are asked for, then made once more, one after the other, with nothing between
them: that is the shortest time that a run can take on this GPU. Whole runs are held against it.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROUNDS = 3
DEVICE = "cuda:0"


class Kept:
    """The passes of some studies, caught where they are queued for the GPU.

    Args:
        device: of the networks.
    """

    def __init__(self, device: str) -> None:
        import lumbar.models.inference as inference

        self.passes: list[Callable[[], Any]] = []
        self.is_keeping, self.cpu_s = False, 0.0
        make = inference.passes_of(device)

        def caught(function: Callable[[], Any]) -> Any:
            if self.is_keeping:
                self.passes.append(function)

            def timed() -> Any:
                started = time.thread_time()
                answer = function()
                self.cpu_s += time.thread_time() - started
                return answer

            return make(timed)

        inference.passes_of = lambda _device: caught
        self._make = make

    def alone(self) -> float:
        """Seconds that all that were kept take one after the other, in the thread that makes them."""

        def each() -> float:
            started = time.perf_counter()
            for function in self.passes:
                function()
            return time.perf_counter() - started

        return min(self._make(each) for _ in range(ROUNDS))


def passes_alone(kept: Kept, data: Path, manifest: Any, networks: Any, n_unlike: int) -> dict[str, float]:
    """Seconds and number of the passes of a study, on average."""
    import numpy as np

    from lumbar.chains import main as chain
    from lumbar.competitions.tables import read_studies
    from lumbar.workers.budget import Effort

    table = read_studies(data, "test", manifest.competition).frame
    prior = np.array([manifest.prior[key] for key in manifest.competition.keys])
    for is_keeping in (False, True):  # the first time plans are made and kernels compiled
        kept.is_keeping = is_keeping
        for number in range(1, n_unlike + 1):
            study = chain.read(data, "test", number, table, 1)
            chain.predict(study, networks, prior, Effort.FULL)
    kept.is_keeping = False
    figures = {"passes": kept.alone() / n_unlike, "n_passes": len(kept.passes) / n_unlike}
    kept.passes.clear()
    gc.collect()
    return figures


def measure(data: Path, bundle: Path, n_unlike: int, n_studies: int, counts: list[int]) -> dict:
    """Seconds a study: of the passes alone, and of whole runs by the number of studies in flight.

    Args:
        data: a competition folder of studies 1 to ``n_studies`` or more; each of the first ``n_unlike`` comes again.
        bundle: of the networks.
        n_unlike: how many studies differ.
        n_studies: how many a run predicts.
        counts: studies in flight.
    """
    import numpy as np
    import torch

    import lumbar.run
    from lumbar.bundle.manifest import verify
    from lumbar.chains import main as chain
    from lumbar.chains.registry import MAIN

    manifest = verify(bundle)
    networks = chain.load(manifest, DEVICE)
    kept = Kept(DEVICE)
    figures: dict[str, Any] = passes_alone(kept, data, manifest, networks, n_unlike)
    torch.cuda.reset_peak_memory_stats()

    spans: list[tuple[float, float]] = []
    lock = threading.Lock()

    def predict(*inputs: Any) -> Any:
        started = time.perf_counter()
        result = chain.predict(*inputs)
        with lock:
            spans.append((started, time.perf_counter()))
        return result

    fake = replace(MAIN, load=lambda _manifest, _device: networks, predict=predict)
    lumbar.run.cuda_devices = lambda: [DEVICE]
    answers = []
    for count in counts:
        spans.clear()
        kept.cpu_s, cpu = 0.0, time.process_time()
        frame, _ = lumbar.run.predict(
            data, bundle, chain=replace(fake, gpu_studies=count), processes=False, studies=n_studies
        )
        answers.append(frame.iloc[:, 1:].to_numpy())
        figures[f"cpu {count}"] = (time.process_time() - cpu - kept.cpu_s) / n_studies
        figures[f"wall {count}"] = (max(end for _, end in spans) - min(start for start, _ in spans)) / n_studies
    figures["differ"] = max(float(np.abs(answers[0] - other).max()) for other in answers)
    figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    figures["gpu"] = torch.cuda.get_device_name()
    figures["load"] = os.getloadavg()[0]
    return figures


if __name__ == "__main__":
    print("gpu_chain: a part of chain.py --gpu")
