"""How much of a study's other work the networks of another hide on a GPU, without one: ``chain.py --fake-gpu``.

Every pass is made once on the CPU and its answer kept. Then a whole run is made in which a pass only waits, as a thread
does for a GPU, and gives the answer that was kept: one pass at a time, each so long that those of a study take the
seconds asked for, shared out as the CPU took them. All else is real: files, crops, decoding of heat, workers, schedule.

On a busy machine the wall time of such a run says more about the machine. So the processor seconds between the passes
are noted too, and the run is worked out on paper for one idle core (``on_idle_core``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any


@dataclass
class Recorded:
    """The passes of one study, in their order: answers, and seconds of the CPU."""

    answers: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class FakeGpu:
    """Networks whose passes are recorded first, and played back afterwards.

    Args:
        networks: of a bundle, on the CPU; their ``forward`` is replaced.
        seconds: that the passes of a study take on average.
    """

    def __init__(self, networks: Any, seconds: float) -> None:
        self.seconds, self.scale = seconds, 0.0
        self.recorded: dict[int, Recorded] = {}
        self.pass_s: list[float] = []
        self._device, self._thread = threading.Lock(), threading.local()
        for network in (network for folds in networks.by_stage.values() for network in folds):
            network.forward = self._passes_of(network.forward)

    def record(self, key: int, predict: Callable[[], Any]) -> None:
        """Run a study on the CPU, and keep its passes."""
        self._thread.recording = self.recorded[key] = Recorded()
        predict()
        self._thread.recording = None
        self.scale = self.seconds / mean(sum(study.seconds) for study in self.recorded.values())

    def play(self, key: int) -> None:
        """Let the next passes of this thread be those of a study."""
        study = self.recorded[key]
        self._thread.passes = iter(list(zip(study.answers, study.seconds, strict=True)))
        self._thread.steps, self._thread.cpu = [], time.thread_time()

    def steps(self) -> list[float]:
        """Seconds of this thread since ``play``: of the processor, of a pass, of the processor, and so on."""
        return [*self._thread.steps, time.thread_time() - self._thread.cpu]

    def _passes_of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            recording = getattr(self._thread, "recording", None)
            if recording is None:
                return self._wait()
            started = time.thread_time()
            answer = forward(*inputs)
            recording.seconds.append(time.thread_time() - started)
            recording.answers.append(answer.clone())
            return answer

        return call

    def _wait(self) -> Any:
        answer, seconds = next(self._thread.passes)
        self._thread.steps += [time.thread_time() - self._thread.cpu, seconds * self.scale]
        with self._device:
            started = time.perf_counter()
            time.sleep(seconds * self.scale)
            self.pass_s.append(time.perf_counter() - started)  # on a busy machine it sleeps longer
        self._thread.cpu = time.thread_time()
        return answer


def on_idle_core(studies: list[list[float]], in_flight: int) -> float:
    """Seconds that studies would take with one core and one GPU, each of which does one thing at a time.

    Args:
        studies: the ``FakeGpu.steps`` of each.
        in_flight: how many are open at the same time.
    """
    now, n_begun = 0.0, 0
    step_of: dict[int, int] = {}  # of each open study, the step that waits or runs
    waiting: tuple[list[int], list[int]] = ([], [])  # for the core, for the GPU
    running: dict[int, tuple[float, int]] = {}  # core 0, GPU 1 → end, study
    while True:
        while len(step_of) < in_flight and n_begun < len(studies):
            step_of[n_begun] = 0
            waiting[0].append(n_begun)
            n_begun += 1
        for place in (0, 1):
            if place not in running and waiting[place]:
                number = waiting[place].pop(0)
                running[place] = now + studies[number][step_of[number]], number
        if not running:
            return now
        now, place = min((end, place) for place, (end, _) in running.items())
        number = running.pop(place)[1]
        step_of[number] += 1
        if step_of[number] < len(studies[number]):
            waiting[step_of[number] % 2].append(number)
        else:
            del step_of[number]


def measure(data: Path, bundle: Path, seconds: float, n_unlike: int, n_studies: int) -> dict[str, float]:
    """Seconds of whole runs with one and with two studies in flight, beside those of the passes alone.

    Args:
        data: a competition folder of studies 1 to ``n_studies`` or more; each of the first ``n_unlike`` comes again.
        bundle: of the networks.
        seconds: that the passes of a study take on average.
        n_unlike: how many studies are run on the CPU.
        n_studies: how many are run on the fake.
    """
    import numpy as np
    import torch

    import lumbar.run
    from lumbar.bundle.manifest import verify
    from lumbar.chains import main as chain
    from lumbar.chains.registry import MAIN
    from lumbar.competitions.tables import read_studies
    from lumbar.workers.budget import Effort

    torch.set_num_threads(1)
    manifest = verify(bundle)
    networks = chain.load(manifest, "cpu")
    gpu = FakeGpu(networks, seconds)
    table = read_studies(data, "test", manifest.competition).frame
    prior = np.array([manifest.prior[key] for key in manifest.competition.keys])
    for number in range(1, n_unlike + 1):
        study = chain.read(data, "test", number, table, 1)
        gpu.record(number, lambda study=study: chain.predict(study, networks, prior, Effort.FULL))

    spans: list[tuple[float, float, list[float]]] = []

    def predict(study: Any, *rest: Any) -> Any:
        gpu.play((study.study_id - 1) % n_unlike + 1)
        started = time.perf_counter()
        result = chain.predict(study, *rest)
        spans.append((started, time.perf_counter(), gpu.steps()))
        return result

    fake = replace(MAIN, load=lambda _manifest, _device: networks, predict=predict)
    lumbar.run.cuda_devices = lambda: ["cuda:0"]
    figures, answers = {}, []
    for in_flight in (1, 2):
        spans.clear()
        gpu.pass_s.clear()
        frame, _ = lumbar.run.predict(
            data, bundle, chain=replace(fake, gpu_studies=in_flight), processes=False, studies=n_studies
        )
        answers.append(frame.iloc[:, 1:].to_numpy())
        wall = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
        figures[f"passes {in_flight}"] = sum(gpu.pass_s) / n_studies
        figures[f"wall {in_flight}"] = wall / n_studies
        steps = [each for _, _, each in sorted(spans)]
        figures["cpu"] = mean(sum(each[::2]) for each in steps)
        figures[f"idle {in_flight}"] = on_idle_core(steps, in_flight) / sum(sum(each[1::2]) for each in steps)
    figures["same"] = float(np.array_equal(*answers))
    figures["load"] = os.getloadavg()[0]
    return figures


if __name__ == "__main__":
    print("fake_gpu: a part of chain.py --fake-gpu")
