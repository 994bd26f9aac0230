from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import nn

from lumbar_train.engine.distributed import Distributed, pick_device
from lumbar_train.engine.loop import fit
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.engine.process_pool import processes
from lumbar_train.engine.sampling import Plan, epoch_order, predict, step_parts
from lumbar_train.errors import TrainingError
from train_toy_fit import TOY, N, ToyDataset, run_toy, toy_loss, toy_network

PROJECT = Path(__file__).parents[2]
TOY_FILE = PROJECT / "tests" / "support" / "train_toy_fit.py"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def environment() -> dict[str, str]:
    path = f"{PROJECT / 'kernel'}:{PROJECT / 'src'}:{PROJECT / 'tests' / 'support'}"
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def assert_bit_identical(left: Path, right: Path) -> None:
    for name in ("last", "best"):
        assert (left / f"{name}.safetensors").read_bytes() == (right / f"{name}.safetensors").read_bytes(), name
    a, b = pd.read_csv(left / "log.csv"), pd.read_csv(right / "log.csv")
    clocks = ["seconds", "samples_per_s"]
    pd.testing.assert_frame_equal(a.drop(columns=clocks), b.drop(columns=clocks), check_exact=True)


def test_a_fit_learns_and_leaves_its_files(tmp_path):
    result = run_toy(tmp_path / "fit", ToyDataset(60), replace(TOY, epochs=12))
    log = pd.read_csv(tmp_path / "fit/log.csv")
    assert len(log) == 12
    assert log["loss"].iloc[-1] < 0.6 * log["loss"].iloc[0]
    assert {"accuracy", "grad_norm", "lr", "val_loss", "samples_per_s"} <= set(log.columns)
    assert log["samples"].tolist() == [60.0] * 12
    assert result.weights == tmp_path / "fit/last.safetensors"
    assert "would flatter" in result.reason
    assert result.metrics["loss"] == log["val_loss"].iloc[-1]
    assert sorted(p.name for p in (tmp_path / "fit").iterdir()) == [
        "best.safetensors", "fit.json", "last.safetensors", "log.csv",
    ]  # fmt: skip


def test_the_rate_warms_up_and_falls(tmp_path):
    config = replace(TOY, epochs=10, batch_size=21, accumulate=1, warmup=0.2)
    run_toy(tmp_path, ToyDataset(), config)
    rates = pd.read_csv(tmp_path / "log.csv")["lr"].tolist()  # after each epoch's only step
    assert rates.index(max(rates)) in (1, 2)
    assert rates[0] < rates[1]
    assert rates[-1] < 0.01 * config.lr
    assert all(a > b for a, b in pairwise(rates[2:]))


def test_best_weights_are_used_when_asked_for(tmp_path):
    result = run_toy(tmp_path, ToyDataset(), replace(TOY, keep="best", lr=0.05, epochs=4))
    log = pd.read_csv(tmp_path / "log.csv")
    assert result.weights.name == "best.safetensors"
    assert result.metrics["loss"] == log["val_loss"].min()
    assert result.metrics["epoch"] == log["val_loss"].idxmin()
    assert "flatters" in result.reason


def test_without_validation_the_last_weights_are_kept(tmp_path):
    result = fit(toy_network(), ToyDataset(), toy_loss, config=TOY, out_dir=tmp_path)
    assert result.best is None
    assert "nothing was held out" in result.reason


def test_two_runs_are_bit_identical(tmp_path):
    run_toy(tmp_path / "a", ToyDataset())
    run_toy(tmp_path / "b", ToyDataset())
    assert_bit_identical(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16), (None, torch.float16), (torch.float16, None),
    ],
)  # fmt: skip
def test_a_fit_goes_on_on_a_device_of_another_precision(tmp_path, monkeypatch, before, after):
    """A GPU with bf16 needs no loss scale, one without needs it; the checkpoint of either serves both."""
    monkeypatch.setattr("lumbar_train.engine.optimisation.amp_dtype", lambda config, device: before)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, ToyDataset(die_after=30))
    monkeypatch.setattr("lumbar_train.engine.optimisation.amp_dtype", lambda config, device: after)
    result = run_toy(tmp_path, ToyDataset(), resume=True)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["epoch"].tolist() == [0.0, 1.0, 2.0]
    assert np.isfinite(log["loss"]).all()
    assert result.metrics["loss"] < 1.2


@pytest.mark.parametrize("n_samples", [1, 7, 9, 21, 30, 50, 62])
def test_resume_is_bit_identical_wherever_it_stopped(tmp_path, n_samples):
    run_toy(tmp_path / "whole", ToyDataset())
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "cut", ToyDataset(die_after=n_samples))
    np.random.rand(5)  # noqa: NPY002 - another process would start with other generators
    torch.rand(3)
    run_toy(tmp_path / "cut", ToyDataset(), resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


def test_resume_from_an_older_checkpoint_is_bit_identical(tmp_path):
    """With rare checkpoints the steps since the last one are simply done again."""
    run_toy(tmp_path / "whole", ToyDataset())
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "cut", ToyDataset(die_after=40), replace(TOY, checkpoint_seconds=1e9))
    run_toy(tmp_path / "cut", ToyDataset(), resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_killed_process_resumes_bit_identically(tmp_path):
    run_toy(tmp_path / "whole", ToyDataset())
    for n_samples in (12, 25):  # killed twice on its way
        command = [sys.executable, str(TOY_FILE), "kill", str(tmp_path / "cut"), str(n_samples)]
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    run_toy(tmp_path / "cut", ToyDataset(), resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_loader_processes_change_nothing(tmp_path):
    run_toy(tmp_path / "a", ToyDataset())
    run_toy(tmp_path / "b", ToyDataset(), replace(TOY, workers=2))
    with processes(1, torch.set_num_threads, 1) as pool:  # there a server forks them
        pool.submit(run_toy, tmp_path / "c", ToyDataset(), replace(TOY, workers=2)).result()
    for name in "bc":
        assert_bit_identical(tmp_path / "a", tmp_path / name)


def test_a_finished_fit_is_not_repeated(tmp_path):
    first = run_toy(tmp_path, ToyDataset())
    again = run_toy(tmp_path, ToyDataset(die_after=0), resume=True)
    assert again == first


@pytest.mark.parametrize("is_finished", [True, False])
def test_resume_with_other_settings_is_refused(tmp_path, is_finished):
    if is_finished:
        run_toy(tmp_path, ToyDataset())
    else:
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path, ToyDataset(die_after=30))
    with pytest.raises(TrainingError, match=r"made with lr 0\.005, found 0\.1 now"):
        run_toy(tmp_path, ToyDataset(), replace(TOY, lr=0.1), resume=True)
    with pytest.raises(TrainingError, match="made with n_samples 21, found 20 now"):
        run_toy(tmp_path, ToyDataset(20), resume=True)
    run_toy(tmp_path, ToyDataset(), replace(TOY, checkpoint_seconds=5.0), resume=True)


def test_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, ToyDataset(die_after=30))
    data = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a readable checkpoint"):
        run_toy(tmp_path, ToyDataset(), resume=True)


def test_full_disk_during_a_checkpoint_keeps_the_former_one(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "cut", ToyDataset(die_after=30))
    before = (tmp_path / "cut/checkpoint.pt").read_bytes()

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(TrainingError, match="the disk is full; what was there before is untouched"):
            run_toy(tmp_path / "cut", ToyDataset(), resume=True)
    assert (tmp_path / "cut/checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "cut").glob(".tmp-*"))
    run_toy(tmp_path / "whole", ToyDataset())
    run_toy(tmp_path / "cut", ToyDataset(), resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


def test_a_loss_that_is_not_finite_names_the_batch(tmp_path):
    with pytest.raises(TrainingError, match=r"epoch 1 step \d: loss is nan.*study 1005") as caught:
        run_toy(tmp_path, ToyDataset(bad=5))
    assert "batch of 2:" in str(caught.value)  # the part that it was in (step 3 holds 5 samples), not the whole step


def test_a_gradient_that_is_not_finite_names_the_batch(tmp_path):
    def loss(network, batch):
        value, _ = toy_loss(network, batch)
        is_bad = (batch["index"] == 3).any()
        # the root's slope at 0 is infinite while its value is 0
        return value + torch.sqrt(value * 0.0) if is_bad else value, {}

    with pytest.raises(TrainingError, match=r"gradient norm is nan.*study 1003"):
        fit(toy_network(), ToyDataset(), loss, config=replace(TOY, batch_size=N, accumulate=1), out_dir=tmp_path)


def test_a_gradient_beyond_the_limit_names_the_batch(tmp_path):
    with pytest.raises(TrainingError, match=r"gradient norm is .*, expected at most 1e-06.*study 10"):
        run_toy(tmp_path, ToyDataset(), replace(TOY, max_norm=1e-6))


def test_accumulation_follows_the_curve_of_the_whole_batch(tmp_path):
    results = {}
    for parts in (1, 3):
        config = replace(TOY, accumulate=parts, ema_decay=None)
        results[parts] = fit(toy_network(), ToyDataset(), toy_loss, config=config, out_dir=tmp_path / str(parts))
    losses = [[row["loss"] for row in results[parts].history] for parts in (1, 3)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, value in weights(tmp_path / "1").items():
        assert torch.allclose(value, weights(tmp_path / "3")[name], atol=1e-5), name


def test_a_step_without_any_weight_is_harmless(tmp_path):
    class Unlabelled(ToyDataset):
        def sample(self, index, rng):
            return super().sample(index, rng) | {"weight": torch.tensor(0.0)}

    result = run_toy(tmp_path, Unlabelled())
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())
    assert result.history[0]["samples"] == N


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured_children")
def test_several_processes_follow_the_curve_of_one(tmp_path):
    world, n_samples = 2, 17  # 8 + 8 + 1: the last batch leaves one idle
    run_toy(tmp_path / "one", ToyDataset(n_samples), replace(TOY, accumulate=1), dropout=0.0)
    run_ranks(tmp_path / "many", world, n_samples)
    one, many = pd.read_csv(tmp_path / "one/log.csv"), pd.read_csv(tmp_path / "many/log.csv")
    for column in ("loss", "accuracy", "grad_norm", "val_loss", "lr"):
        assert many[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-4), column
    assert many["samples"].tolist() == one["samples"].tolist()
    assert many["val_n"].tolist() == [13.0] * 3
    for name, value in weights(tmp_path / "one").items():
        assert torch.allclose(value, weights(tmp_path / "many")[name], atol=1e-4), name


def run_ranks(folder: Path, world: int, n_samples: int, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [str(TOY_FILE), "distributed", str(folder), str(n_samples), *more]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=1500)
    if not more:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured_children")
def test_a_bad_sample_on_one_process_ends_all_and_is_named(tmp_path):
    done = run_ranks(tmp_path, 2, N, "5")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "TrainingError" in line and "study 1005" in line]
    assert len(lines) >= 2, done.stderr[-3000:]


def test_parts_cover_each_batch_once_for_any_number_of_processes():
    for world in (1, 2, 3, 5):
        for size in (1, 2, 7, 16):
            for accumulate in (1, 2, 4):
                batch = np.arange(100, 100 + size)
                parts = [step_parts(batch, 0, 0, Distributed(rank, world), accumulate) for rank in range(world)]
                assert len({len(some) for some in parts}) == 1  # everyone exchanges gradients equally often
                seen = [i for some in parts for part in some if part.counts for i in part.indices]
                assert sorted(seen) == batch.tolist()
                assert all([part.is_last for part in some] == [False] * (len(some) - 1) + [True] for some in parts)


def test_epochs_are_permutations_that_differ():
    orders = [epoch_order(50, 1, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    plan = Plan(50, 8, 1, 1, Distributed())
    rest = [p.indices for p in plan.start(2, first_step=3)]
    assert [i for indices in rest for i in indices] == orders[2][24:].tolist()


def test_samples_do_not_depend_on_who_draws_them(tmp_path):
    seen: dict[int, dict[tuple[int, int], float]] = {}
    for batch_size in (4, 8):
        drawn: dict[tuple[int, int], float] = {}

        def loss(network, batch, drawn=drawn):
            for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                drawn[len(drawn) // N, index] = float(image.sum())
            return toy_loss(network, batch)

        config = replace(TOY, batch_size=batch_size, epochs=2)
        fit(toy_network(), ToyDataset(), loss, config=config, out_dir=tmp_path / str(batch_size))
        seen[batch_size] = drawn
    assert seen[4] == seen[8]
    assert seen[4][0, 5] != seen[4][1, 5]  # another epoch, another augmentation


def test_predictions_come_in_the_order_of_the_dataset():
    out = predict(lambda b: {"index": b["index"]}, ToyDataset(), batch_size=4)
    assert out["index"].tolist() == list(range(N))


def test_frozen_parameters_stay(tmp_path):
    network = toy_network()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    fit(network, ToyDataset(), toy_loss, config=TOY, out_dir=tmp_path)
    assert torch.equal(weights(tmp_path)["0.weight"], before)


def test_channels_last_and_tensorboard_are_options(tmp_path):
    run_toy(tmp_path, ToyDataset(), replace(TOY, epochs=1, channels_last=True, tensorboard=True))
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoopConfig(batch_size=0), "batch_size: found 0"),
        (LoopConfig(keep="middle"), "keep: found 'middle'"),
        (LoopConfig(amp="fp8"), "amp: found 'fp8'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path, config, message):
    with pytest.raises(TrainingError, match=message):
        fit(toy_network(), ToyDataset(), toy_loss, config=config, out_dir=tmp_path)


def test_an_empty_dataset_and_an_unknown_monitor_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="the dataset is empty"):
        fit(toy_network(), ToyDataset(0), toy_loss, config=TOY, out_dir=tmp_path)
    with pytest.raises(TrainingError, match="monitor 'score': validation gave loss, n"):
        run_toy(tmp_path, ToyDataset(), replace(TOY, monitor="score"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused():
    assert pick_device("auto").type == "cpu"
    with pytest.raises(TrainingError, match="torch sees no GPU"):
        pick_device("cuda")
    with pytest.raises(TrainingError, match="device: found 'gpu', expected auto, cpu, cuda"):
        pick_device("gpu")


def test_a_gpu_beyond_those_at_hand_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda", 1) == pick_device("cuda:1") == torch.device("cuda", 1)
    for name, local_rank in (("cuda:2", 0), ("cuda", 2)):
        with pytest.raises(TrainingError, match=f"device {name}: found 2 GPUs, expected one of this number"):
            pick_device(name, local_rank)


def test_weights_of_another_network_are_refused(tmp_path):
    from lumbar_train.engine.checkpoint import load_weights, save_weights

    save_weights(tmp_path / "w.safetensors", nn.Linear(2, 2))
    with pytest.raises(TrainingError, match="not weights of this Linear"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(3, 2))
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match="not weights of this Linear"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(2, 2))


def test_the_result_names_its_configuration(tmp_path):
    run_toy(tmp_path, ToyDataset())
    content = json.loads((tmp_path / "fit.json").read_text())
    assert content["config"]["seed"] == 3
    assert content["identity"] == {"n_samples": N}
