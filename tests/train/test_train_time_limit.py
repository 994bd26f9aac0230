"""A time limit ends a fit between two steps, a pass between two studies, and a pool when all of it has saved itself."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from lumbar_train.engine import interrupts
from lumbar_train.engine.fold_pool import hand_out
from lumbar_train.engine.interrupts import TimeLimitReached, ends_in_time, until_time_is_up
from lumbar_train.stages.context import joined
from train_threads import together
from train_toy_fit import TOY, ToyDataset, run_toy

CPU = (torch.device("cpu"),)


@pytest.fixture
def time_is_up_after(monkeypatch):
    """Time goes on by one with each look at the clock."""

    def after(looks: int):
        seen = iter(range(10**9))
        monkeypatch.setattr(interrupts, "clock", lambda: float(next(seen)))
        return ends_in_time(float(looks))

    return after


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 7])  # in the first epoch of three steps, at its end, later
def test_a_fit_ends_at_its_next_step_and_goes_on_to_the_same_weights(tmp_path, time_is_up_after, looks):
    whole = run_toy(tmp_path / "whole", ToyDataset())
    config = replace(TOY, checkpoint_seconds=1e9)
    with time_is_up_after(looks), pytest.raises(TimeLimitReached) as end:
        run_toy(tmp_path / "cut", ToyDataset(), config)
    assert end.value.has_saved
    counters = torch.load(tmp_path / "cut/checkpoint.pt", weights_only=True)["counters"]
    assert counters[2] == looks + 1  # one look after each step
    assert not interrupts.is_asked_to_end()
    again = run_toy(tmp_path / "cut", ToyDataset(), config, resume=True)
    assert again.last.read_bytes() == whole.last.read_bytes()


def test_a_fit_that_is_done_when_the_time_is_up_is_kept(tmp_path, time_is_up_after):
    with time_is_up_after(8):  # looks at the clock: two in each epoch, one between epochs
        run_toy(tmp_path, ToyDataset(), replace(TOY, checkpoint_seconds=1e9))
    assert (tmp_path / "fit.json").is_file()


def test_a_pass_ends_between_two_studies(time_is_up_after):
    with time_is_up_after(2):
        studies = until_time_is_up([5, 6, 7], is_one_of_many=False)
        assert [next(studies), next(studies)] == [5, 6]
        with pytest.raises(TimeLimitReached):
            next(studies)
    assert list(until_time_is_up([5, 6, 7], is_one_of_many=False)) == [5, 6, 7]


def test_a_group_ends_a_pass_together_when_one_of_it_is_out_of_time(monkeypatch):
    cuts = {0: False, 1: True}

    def work(distributed):
        return joined(distributed, {distributed.rank: "answer"}, is_cut=cuts[distributed.rank])

    assert all(isinstance(error, TimeLimitReached) for error in together(2, work))
    cuts[1] = False
    assert together(2, work) == [{0: "answer", 1: "answer"}] * 2


def test_a_pool_waits_for_every_fit_to_save_itself_and_begins_no_other():
    futures: list[Future[int]] = []

    def begin(task: int, device: torch.device) -> Future[int]:
        futures.append(Future())
        if task == 1:
            futures[0].set_exception(TimeLimitReached(has_saved=True))
            futures[1].set_exception(TimeLimitReached())
        return futures[-1]

    with pytest.raises(TimeLimitReached) as end:
        list(hand_out(range(5), 2, CPU, begin))
    assert len(futures) == 2
    assert end.value.has_saved
