"""Several processes on one fit: they add up the same gradients, and give a part up together when one lacks memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lumbar_train.engine.gradients import exchange_gradients, guard_shared_statistics, start_alike
from lumbar_train.engine.loop import fit
from lumbar_train.engine.out_of_memory import PartTooLarge, part_that_fits
from train_threads import together
from train_toy_fit import TOY, ToyDataset, toy_loss, toy_network


def test_gradients_are_added_up_and_unused_parameters_keep_none():
    def work(distributed):
        parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
        parameters[0].grad = torch.full((2, 3), distributed.rank + 1.0)
        if distributed.rank == 1:
            parameters[1].grad = torch.arange(4.0)
        exchange_gradients(parameters, distributed)
        return [p.grad for p in parameters]

    for gradients in together(2, work):
        assert torch.equal(gradients[0], torch.full((2, 3), 3.0))
        assert torch.equal(gradients[1], torch.arange(4.0))
        assert gradients[2] is None


def test_every_process_starts_from_the_main_ones_weights_and_statistics():
    networks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    networks[0][1].running_mean.fill_(3.0)
    together(2, lambda distributed: start_alike(networks[distributed.rank], distributed))
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name]), name


class LossWithoutRoom:
    """The toy's loss on a group whose second process has room for two samples at most."""

    def __init__(self, rank: int, fails_in: str) -> None:
        self.rank, self.fails_in = rank, fails_in

    def __call__(self, network, batch):
        loss, scalars = toy_loss(network, batch)
        if self.rank == 1 and len(batch["label"]) > 2:
            if self.fails_in == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss.register_hook(_no_room)
        return loss, scalars


def _no_room(_gradient):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_all_halve_their_parts_when_one_runs_out_of_memory(tmp_path, fails_in):
    config = replace(TOY, accumulate=1, epochs=2)
    fit(toy_network(), ToyDataset(), toy_loss, config=config, out_dir=tmp_path / "one")
    networks = [toy_network(), toy_network()]

    def work(distributed):
        loss, network = LossWithoutRoom(distributed.rank, fails_in), networks[distributed.rank]
        return fit(network, ToyDataset(), loss, config=config, out_dir=tmp_path / "many", distributed=distributed)

    results = together(2, work)
    assert not any(isinstance(result, Exception) for result in results), results
    one, many = (pd.read_csv(tmp_path / name / "log.csv") for name in ("one", "many"))
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-4)
    assert set(many["parts"]) == {2.0}  # a share of four samples in two parts, on either


class Statistics(nn.Module):
    """Stands for a layer that exchanges batch statistics, forwards and backwards."""

    def __init__(self, distributed) -> None:
        super().__init__()
        self.distributed = distributed

    def forward(self, x):
        return Exchange.apply(x, self.distributed)


class Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, distributed):
        ctx.distributed = distributed
        assert distributed.gather("forward") == ["forward"] * 2
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        assert ctx.distributed.gather("backward") == ["backward"] * 2
        return gradient, None


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_layers_that_wait_for_the_others_do_not_wait_for_one_that_gave_up(fails_in):
    def work(distributed):
        fails = distributed.rank == 1
        middle = nn.ReLU()
        network = nn.Sequential(nn.Linear(2, 2), Statistics(distributed), middle, Statistics(distributed))
        if fails and fails_in == "forward":
            middle.register_forward_hook(lambda *_: _no_room(None))
        if fails and fails_in == "backward":
            middle.register_forward_hook(lambda _m, _i, out: out.register_hook(_no_room) and None)
        guard_shared_statistics(network, distributed, Statistics)
        with part_that_fits(distributed):
            network(torch.ones(3, 2)).sum().backward()

    assert all(isinstance(error, PartTooLarge) for error in together(2, work))
