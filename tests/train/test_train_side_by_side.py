"""Folds side by side: their processes and the run's own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fold_pool import hand_out, run_side_by_side, usable_devices, workers

SLEEP_S = 1500.0


def wait(folder: str) -> None:
    """A fit that lasts: says who does it, and sleeps."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(SLEEP_S)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_fits_end_with_the_run_that_is_killed(tmp_path):
    """Else they would write beside the run that is started again."""
    script = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_train_side_by_side import wait, workers\n"
        "if __name__ == '__main__':\n"
        "    with workers(2) as pool:\n"
        f"        [future.result() for future in [pool.submit(wait, {str(tmp_path)!r}) for _ in range(2)]]\n"
    )
    (tmp_path / "run.py").write_text(script)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        pids: list[int] = []
        while len(pids) < 2 and time.monotonic() < deadline:
            pids = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
            time.sleep(0.1)
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        run.kill()
        run.wait(60)
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_alive, pids))
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(60)


def test_one_job_needs_no_pool():
    with workers(1) as pool:
        assert pool is None


# Which device


GPUS = tuple(torch.device("cuda", k) for k in range(4))


@dataclass
class FakeRun:
    """A run whose fits last a given time; notes which device each had and how many shared it."""

    devices: tuple[torch.device, ...]
    seconds: dict[int, float]
    distributed: Distributed = field(default_factory=Distributed)
    had: dict[int, str] = field(default_factory=dict)
    busy: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, stage: str, fold: int) -> None:
        name = str(self.distributed.device)
        with self.lock:
            self.had[fold] = name
            self.busy[name] += 1
            self.most[name] = max(self.most[name], self.busy[name])
        time.sleep(self.seconds[fold])
        with self.lock:
            self.busy[name] -= 1


@pytest.fixture
def fake_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def spread(devices: tuple[torch.device, ...], seconds: list[float], jobs: int) -> FakeRun:
    run = FakeRun(devices, dict(enumerate(seconds)))
    with ThreadPoolExecutor(jobs) as pool:
        run_side_by_side(run, FakeRun.work, "axial_xy", list(range(len(seconds))), pool, jobs)
    assert sorted(run.had) == list(range(len(seconds)))
    return run


def test_no_gpu_has_two_fits_while_another_has_none(fake_gpus):
    """The first fit is long: by number alone the third would join it, while the second GPU lies idle."""
    run = spread(GPUS[:2], [0.6, 0.05, 0.05, 0.05, 0.05], 2)
    assert dict(run.most) == {"cuda:0": 1, "cuda:1": 1}
    assert [run.had[k] for k in range(5)] == ["cuda:0"] + ["cuda:1"] * 4


@pytest.mark.parametrize(("n_gpus", "jobs"), [(4, 3), (3, 3), (2, 5), (1, 3)])
def test_fits_are_spread_as_evenly_as_can_be(fake_gpus, n_gpus, jobs):
    run = spread(GPUS[:n_gpus], [0.02, 0.2, 0.02, 0.1, 0.02, 0.15, 0.02, 0.02, 0.1], jobs)
    assert max(run.most.values()) <= -(-jobs // n_gpus)


def test_without_gpus_fits_share_the_cpu(fake_gpus):
    run = spread((torch.device("cpu"),), [0.01] * 4, 2)
    assert run.most == {"cpu": 2}


def test_every_gpu_is_used_unless_one_is_named(fake_gpus):
    assert usable_devices("auto") == usable_devices("cuda") == GPUS[:2]
    assert usable_devices("cuda:1") == (GPUS[1],)
    assert usable_devices("cpu") == (torch.device("cpu"),)


def test_after_a_refusal_no_other_fit_begins():
    begun = []

    def begin(task: int, device: torch.device) -> "Future[int]":
        begun.append(task)
        future: Future[int] = Future()
        if task == 1:
            future.set_exception(ValueError("bad"))
        else:
            future.set_result(task)
        return future

    with pytest.raises(ValueError, match="bad"):
        list(hand_out(range(6), 1, GPUS[:1], begin))
    assert begun == [0, 1]
