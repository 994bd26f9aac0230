"""Forward passes of a GPU: one thread makes them all; here without a GPU."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lumbar.models import inference
from lumbar.models.passes import passes_of


def test_one_thread_makes_the_passes_of_all_studies_one_after_another():
    running = []

    def work(number):
        running.append(number)
        time.sleep(0.002)
        assert running == [number]
        running.clear()
        return number, threading.get_ident()

    with ThreadPoolExecutor(4) as studies:
        answers = list(studies.map(lambda k: passes_of("cuda:0")(lambda: work(k)), range(20)))
    assert [number for number, _ in answers] == list(range(20))
    (thread,) = {thread for _, thread in answers}
    assert thread != threading.get_ident()
    assert passes_of("cuda:1")(threading.get_ident) not in (thread, threading.get_ident())


def test_what_a_pass_raises_comes_to_the_study_that_asked_and_the_next_goes_on():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        passes_of("cuda:0")(fail)
    with pytest.raises(SystemExit):
        passes_of("cuda:0")(lambda: exec("raise SystemExit(3)"))
    assert passes_of("cuda:0")(lambda: 7) == 7


def test_networks_of_a_gpu_are_run_there(monkeypatch):
    """As on a GPU, with what only a GPU has left out."""
    monkeypatch.setattr(inference, "device_of", lambda network: torch.device("cuda:1"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **options: tensor)
    threads = []

    def passed(function, device, inputs):
        threads.append((threading.get_ident(), device))
        return [function(*inputs)]

    monkeypatch.setattr(inference, "_pass", passed)
    torch.testing.assert_close(inference.forward(torch.nn.Identity(), torch.arange(3.0)), torch.arange(3.0))
    assert threads == [(passes_of("cuda:1")(threading.get_ident), torch.device("cuda:1"))]
