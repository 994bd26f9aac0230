"""Batches that do not fit: cut by the plan, cut when memory runs out, activations computed anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lumbar.config import AxialRegressionConfig, BackboneConfig, to_dict
from lumbar.models import build, name_of
from lumbar_train.engine.activation_checkpoints import checkpoint_activations
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.loop import fit
from lumbar_train.engine.loop_config import LoopConfig, is_channels_last, place
from lumbar_train.engine.out_of_memory import smaller_parts
from lumbar_train.errors import TrainingError
from train_toy_fit import TOY, ToyDataset, run_toy, toy_loss, toy_network


def losses(folder: Path) -> np.ndarray:
    return pd.read_csv(folder / "log.csv")["loss"].to_numpy()


class LossOfRoom:
    """The toy's loss on a device that has room for so many samples."""

    def __init__(self, room: int, fails_in: str = "forward") -> None:
        self.room, self.fails_in, self.n_failed = room, fails_in, 0

    def __call__(self, network: nn.Module, batch: dict[str, torch.Tensor]):
        loss, scalars = toy_loss(network, batch)
        if len(batch["label"]) > self.room:
            self.n_failed += 1
            if self.fails_in == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            loss.register_hook(_no_room)
        return loss, scalars


def _no_room(_gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_a_fit_goes_on_in_smaller_parts_when_memory_runs_out(tmp_path, capsys, fails_in):
    config = replace(TOY, accumulate=1)
    fit(toy_network(), ToyDataset(), toy_loss, config=config, out_dir=tmp_path / "whole")
    loss = LossOfRoom(3, fails_in)
    fit(toy_network(), ToyDataset(), loss, config=config, out_dir=tmp_path / "cut")
    assert loss.n_failed == 2  # 8 samples, 4, then 2
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), atol=1e-4)
    assert set(pd.read_csv(tmp_path / "cut/log.csv")["parts"]) == {4.0}
    said = capsys.readouterr().out
    assert "out of memory, so batches go on in 2 parts instead of 1" in said
    assert "in 4 parts instead of 2" in said


def test_smaller_parts_survive_a_resume(tmp_path):
    config, loss = replace(TOY, accumulate=1), LossOfRoom(2)
    with pytest.raises(KeyboardInterrupt):
        fit(toy_network(), ToyDataset(die_after=60), loss, config=config, out_dir=tmp_path)
    before = loss.n_failed
    fit(toy_network(), ToyDataset(), loss, config=config, out_dir=tmp_path, resume=True)
    assert loss.n_failed == before == 2


def test_a_device_without_room_for_one_sample_is_refused_in_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"out of memory with one sample a part, expected room for one") as caught:
        fit(toy_network(), ToyDataset(), LossOfRoom(0), config=TOY, out_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("now", "share", "then"), [(1, 8, 2), (2, 8, 4), (3, 8, 8), (8, 8, None), (1, 5, 3), (9, 5, None)]
)
def test_parts_halve_until_they_are_single_samples(now, share, then):
    assert smaller_parts(now, share) == then


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_without_batch_statistics_a_cut_batch_has_the_loss_curve_of_the_whole_one(tmp_path, accumulate):
    run_toy(tmp_path / "whole", ToyDataset(), replace(TOY, accumulate=1), dropout=0.0)
    run_toy(tmp_path / "cut", ToyDataset(), replace(TOY, accumulate=accumulate), dropout=0.0)
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), atol=1e-4)


# Activation checkpointing


def network_of(backbone: BackboneConfig) -> nn.Module:
    torch.manual_seed(5)
    config = AxialRegressionConfig(backbone, size=64)
    return build(name_of(config), to_dict(config)).train()


@pytest.mark.parametrize("name", ["resnet10t", "efficientnetv2_rw_t"])
def test_checkpointing_gives_the_same_gradients_and_statistics(name):
    backbone = BackboneConfig(name)
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    plain, checkpointed = network_of(backbone), network_of(backbone)
    checkpoint_activations(checkpointed)
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    for network in (plain, checkpointed):
        for _ in range(2):
            torch.manual_seed(9)
            network(images).square().sum().backward()
    for (key, a), (_, b) in zip(plain.state_dict().items(), checkpointed.state_dict().items(), strict=True):
        assert torch.equal(a, b), key  # running means, variances and counts: updated once a pass
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_checkpointing_is_switched_on_by_the_fits_option():
    network = place(network_of(BackboneConfig("resnet10t")), LoopConfig(checkpointing=True), Distributed())
    assert network.backbone.network.grad_checkpointing


# Memory format


def test_channels_last_is_the_default_of_gpus_alone():
    assert is_channels_last(LoopConfig(), torch.device("cuda"))
    assert not is_channels_last(LoopConfig(), torch.device("cpu"))
    assert not is_channels_last(LoopConfig(channels_last=False), torch.device("cuda"))


def test_channels_last_leaves_the_answers():
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = network_of(BackboneConfig("resnet10t")).eval()
    other = place(network_of(BackboneConfig("resnet10t")), LoopConfig(channels_last=True), Distributed()).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            other(images.contiguous(memory_format=torch.channels_last)), plain(images), rtol=1e-4, atol=1e-5
        )


def test_a_fit_from_before_an_option_existed_is_resumed(tmp_path):
    run_toy(tmp_path, ToyDataset())
    result = json.loads((tmp_path / "fit.json").read_text())
    del result["config"]["checkpointing"], result["config"]["channels_last"]
    (tmp_path / "fit.json").write_text(json.dumps(result))
    assert run_toy(tmp_path, ToyDataset(), resume=True).metrics == result["metrics"]
